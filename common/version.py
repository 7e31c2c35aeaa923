"""The version, which is also there where the code runs from its source folder, as in a submitted
job."""

VERSION = "0.1.0"
