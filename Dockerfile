# The image `headroom`: one binary for the adapter, the agent beside a service, and the demo with its sample service.
#
#   docker build -t headroom:0.1.0 .
#
# The same text builds it for amd64 and arm64. glibc is linked dynamically: jemalloc's heap profiling crashes in static
# binaries. So the image is empty but for the binary, the libraries that it names, and the CA certificates.

FROM rust:1.95-bookworm AS build
ARG TARGETARCH=native
# The files of the image are as old as this: 0, or the commit's time in a release. The same source gives the same layers.
ARG SOURCE_DATE_EPOCH=0
ENV CARGO_TARGET_DIR=/var/cache/target/${TARGETARCH}
WORKDIR /src
COPY . .
# Both caches outlive the build, so that a change here compiles this crate alone. Its files may be older than what the cache
# was built from, and Cargo compares ages: hence the touch.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/var/cache/target,sharing=locked \
    touch src/lib.rs src/main.rs \
 && cargo build --release --locked --bin headroom \
 && .ci/image-root "${CARGO_TARGET_DIR}/release/headroom" /out

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="headroom" \
      org.opencontainers.image.description="Kubernetes autoscaling on what services really feel: runtime signals, pprof, and a metrics API server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/headroom-dev/headroom" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/ /
USER 65532:65532
EXPOSE 6443 8080 9469
STOPSIGNAL SIGTERM
ENTRYPOINT ["/headroom"]
