"""`python -m deploy …`: the command line where only the source folder is there, as in a submitted job."""

from deploy.cli import main

main()
