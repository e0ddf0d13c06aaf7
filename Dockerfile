# The image of a node: one static-enough binary on a small Debian, uid 1000, a root file system that is never written.
#   docker build -t signaldb .
#   docker run --read-only -v signaldb:/data -p 4317:4317 -p 4318:4318 -p 3000:3000 -p 50053:50053 signaldb
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libclang-14-dev >/dev/null \
 && cargo build --locked --release -p signaldb-node

FROM debian:bookworm-slim
# The certificates of S3 servers.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates >/dev/null \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home --home-dir /data signaldb
COPY --from=build /src/target/release/signaldb /usr/local/bin/signaldb
# The names of the roles; they all run in one process until they are split.
RUN for role in acceptor router writer querier; do ln -s signaldb "/usr/local/bin/signaldb-$role"; done
USER 1000
WORKDIR /data
VOLUME /data
ENV SIGNALDB_NODE__DATA_DIR=/data \
    SIGNALDB_LISTEN__OTLP_GRPC=0.0.0.0:4317 \
    SIGNALDB_LISTEN__OTLP_HTTP=0.0.0.0:4318 \
    SIGNALDB_LISTEN__HTTP=0.0.0.0:3000 \
    SIGNALDB_LISTEN__FLIGHT=0.0.0.0:50053 \
    SIGNALDB_AUTH__ALLOW_ANONYMOUS=true
EXPOSE 4317 4318 3000 50053 50051
ENTRYPOINT ["signaldb"]
CMD ["server"]
