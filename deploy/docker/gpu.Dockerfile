# syntax=docker/dockerfile:1
# The image for NVIDIA GPUs, with vLLM. torch brings the CUDA libraries with it and needs only the
# node's driver, so this starts from the same base as the image for CPUs. Build it from the
# repository root:
#
#   docker build -f deploy/docker/gpu.Dockerfile -t engram-gpu:0.1.0 .
#
# TORCH_INDEX: an index of torch for another version of CUDA than the default index's.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS dependencies
ARG TORCH_INDEX=""
ARG EXTRAS="[vllm,peft]"
# The version of vLLM that the pins of constraints.txt are held for.
ARG EXTRA_PACKAGES="vllm==0.33.0"
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY pyproject.toml constraints.txt LICENSE NOTICE ./
COPY common/version.py common/version.py
RUN touch README.md common/__init__.py
# The words of EXTRA_PACKAGES are several arguments.
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} ".${EXTRAS}" ${EXTRA_PACKAGES}

FROM python:${PYTHON}-slim-bookworm
# wget: the probes of deploy/kuberay. gcc and libc6-dev: Triton compiles its launchers with them, for
# torch.compile and vLLM. Debian keeps no older versions of a release that pins could name.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home engram && mkdir /runs && chown engram:engram /runs
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /opt/engram
# Owned by root: a run cannot change the code it runs.
COPY common common
COPY rollout rollout
COPY reward_service reward_service
COPY learner learner
COPY deploy deploy
COPY benchmarks benchmarks
COPY configs configs
COPY pyproject.toml constraints.txt LICENSE NOTICE ./
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/engram \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
# Whether runs can start in it: packages, driver, shared memory, disk. Kubernetes has probes instead.
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s \
    CMD ["engram", "doctor", "--runs", "/runs"]
CMD ["engram", "demo", "runs=/runs"]
