# One image with the model: Debian's Python without a shell or a package manager, three packages, the server, and its model.
# bin/image builds it so that the same commit gives the same image; a plain `docker build` gives the same files.
FROM debian:trixie-slim AS parts
WORKDIR /build
# The order of sets in compiled modules depends on the hash seed.
ENV PYTHONHASHSEED=0
# The tools of this stage do not get into the image, so their versions are free. bin/image.d locks everything that does.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils ca-certificates patchelf python3-pip \
    && rm -rf /var/lib/apt/lists/*
COPY bin/image.d/debian bin/image.d/debian.*.lock ./
RUN apt-get update \
    && ./debian "/build/debian.$(dpkg --print-architecture).lock" /build/debs \
    && rm -rf /var/lib/apt/lists/*
COPY bin/image.d/wheels.txt bin/image.d/docs.txt ./
RUN pip install --root-user-action ignore --no-cache-dir --no-compile --no-deps --only-binary :all: --require-hashes --requirement wheels.txt --requirement docs.txt --target wheels
COPY bin/image.d/rootfs.py bin/image.d/imports.py bin/image.d/pruned.txt bin/image.d/stdlib.txt ./
RUN python3 rootfs.py base debs wheels stdlib.txt root
COPY iris_wsgi app/usr/local/lib/python3.13/dist-packages/iris_wsgi
COPY LICENSE NOTICE app/usr/share/doc/iris_wsgi/
RUN python3 imports.py root app without redis postgres fsspec pyarrow parquet ray_engine tqdm joblib onnx onnxmltools pandas skl2onnx

FROM parts AS build
RUN python3 rootfs.py bytecode root && python3 rootfs.py bytecode app && python3 rootfs.py folder state/state

# Additional packages for roles with Redis or PostgreSQL.
FROM parts AS build-full
COPY bin/image.d/full.txt bin/image.d/stdlib-full.txt ./
RUN pip install --root-user-action ignore --no-cache-dir --no-compile --no-deps --only-binary :all: --require-hashes --requirement full.txt --target wheels-full
RUN python3 rootfs.py additions root debs wheels-full stdlib-full.txt full \
    && python3 imports.py root full app without fsspec pyarrow parquet ray_engine tqdm joblib onnx onnxmltools pandas skl2onnx \
    && python3 rootfs.py bytecode full

FROM scratch AS system
COPY --from=build /build/root /
COPY --from=build /build/app /
# For the roles that store something. Other roles write nothing. A new volume that is mounted there inherits the owner of this folder.
COPY --from=build --chown=65532:65532 /build/state /
ENV IRIS_HOST=0.0.0.0 \
    IRIS_MODEL_DIR=/model \
    IRIS_PORT=8000 \
    IRIS_ROLE=web_single \
    IRIS_STATE_DIR=/state \
    ORT_DISABLE_TELEMETRY=1
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/bin/python3.13", "-I", "-m", "iris_wsgi", "healthcheck"]
ENTRYPOINT ["/usr/bin/python3.13", "-I", "-m", "iris_wsgi"]
CMD ["serve"]

# The models get into the image only from this stage, which runs their golden rows. For your own model, bin/image build --model-dir DIR
# passes a folder within this one, the seal that verify prints, and the labels.
FROM system AS tested
ARG MODEL_FOLDER=model
COPY ${MODEL_FOLDER} /model
ARG MODEL_SEAL=sha256:9da68c07303bf20412745ecb6ecfe7b4b4bb968f3357e1c472f9557b61d17021
ENV IRIS_MODEL_SEAL=${MODEL_SEAL}
RUN ["/usr/bin/python3.13", "-I", "-m", "iris_wsgi", "verify"]

FROM system AS release
LABEL org.opencontainers.image.title="iris_wsgi" \
      org.opencontainers.image.description="A classifier in ONNX and every pattern it can be served in" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="unknown" \
      iris-wsgi.model.digest="sha256:6fc0a03084c2ebf7bdb7f10135a8a33d0705a81710862e421fedd460b2aae697" \
      iris-wsgi.model.seal="sha256:9da68c07303bf20412745ecb6ecfe7b4b4bb968f3357e1c472f9557b61d17021"
COPY --from=tested /model /model

FROM release AS full
COPY --from=build-full /build/full /

# With the bundle of bin/edge build as a separate layer. The other stages do not need the bundle.
FROM release AS edge
COPY dist/edge /edge
ENV IRIS_EDGE_DIR=/edge

# The last stage is the default target.
FROM release AS default
