# The image `headroom`: one binary for the adapter and the demo with its sample service.
#
#   docker build -t headroom:0.1.0 .
#
# glibc is linked dynamically: jemalloc's heap profiling crashes in static binaries. So the image is
# empty but for the binary, the libraries that it names, and the CA certificates.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin headroom
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN mkdir -p /out/etc/ssl/certs /out/tmp \
 && chmod 1777 /out/tmp \
 && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
 && cp target/release/headroom /out/headroom \
 && ldd /out/headroom | grep -o '/[^ ]*' | sort -u | xargs cp --dereference --parents --target-directory=/out

FROM scratch
COPY --from=build /out/ /
USER 65532:65532
EXPOSE 6443 8080 9469
ENTRYPOINT ["/headroom"]
