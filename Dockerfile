# The package with CUDA, for a machine with NVIDIA's container toolkit:
#
#   docker build -t pixeldefend .
#   docker run --rm --gpus all -v pixeldefend:/out pixeldefend \
#     --config=cifar10 --mode=purify --workdir=/out/purify
#
# CUDA comes with JAX's wheels, so the machine needs no more than a driver. EXTRAS are
# those of pyproject.toml: --build-arg EXTRAS=data builds it for CPUs.
FROM python:3.12-slim

# Anybody's but root's; results and compiled programs are written to folders of theirs.
RUN useradd --create-home --uid 1000 pixeldefend \
    && install --directory --owner=pixeldefend /out /pixeldefend
WORKDIR /pixeldefend

ARG EXTRAS=cuda12,data
COPY pyproject.toml requirements.txt README.md LICENSE main.py ./
COPY configs configs
COPY pixeldefend pixeldefend
# The exact versions that are tested.
RUN pip install --no-cache-dir --constraint requirements.txt ".[${EXTRAS}]"

USER pixeldefend
VOLUME /out
ENTRYPOINT ["pixeldefend"]
CMD ["--help"]
