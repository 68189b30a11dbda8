# The image that fastmfr runs in: docker build --tag fastmfr . (with --target tested the build runs the tests as well)
# The steps are targets of the Makefile, so that an image holds what .venv holds; tests/test_dockerfile.py compares them.

FROM python:3.13-slim-bookworm AS installed

# The compiler stays in the image: on a GPU, Triton compiles the launcher of each kernel with the compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /fastmfr
COPY . .
RUN make install

FROM installed AS tested
RUN make test

FROM installed AS fastmfr
# Whoever starts a container with --user has no home in the image; caches then go to /tmp.
ENV HOME=/tmp PATH=/fastmfr/.venv/bin:$PATH
WORKDIR /work
ENTRYPOINT ["python", "-m", "fastmfr"]
CMD ["--help"]
