# Two images: PostgreSQL 17 with pg_steadytext, pgvector and pgTAP, and the program that serves its queue from other machines.
#
#     docker build -t pg_steadytext .
#     docker build -t steadytext-worker --target worker .
#     docker run -e POSTGRES_PASSWORD=secret -p 5432:5432 pg_steadytext
#
# Then, in any database: CREATE EXTENSION pg_steadytext CASCADE;
# deploy/compose.yml starts both, with Prometheus and Grafana.

FROM rust:1.95-bookworm AS rust

FROM postgres:17-bookworm AS base
# No pinned versions: the archive keeps only the newest of each package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends postgresql-17-pgtap postgresql-17-pgvector \
    && rm -rf /var/lib/apt/lists/*

# The same image as the server's, so that headers and server are of one version.
FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential clang libclang-dev postgresql-server-dev-17 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=rust /usr/local/cargo /usr/local/cargo
COPY --from=rust /usr/local/rustup /usr/local/rustup
ENV PATH=/usr/local/cargo/bin:$PATH CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup
WORKDIR /build
COPY . .
RUN make install DESTDIR=/out PG_CONFIG=/usr/lib/postgresql/17/bin/pg_config

FROM build AS build-worker
RUN cargo build --release -p steadytext-worker

FROM debian:bookworm-slim AS worker
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin steadytext \
    && install -d -o steadytext /models
COPY --from=build-worker /build/target/release/steadytext-worker /usr/local/bin/
USER 10001
ENV STEADYTEXT_WORKER_MODEL_DIR=/models STEADYTEXT_WORKER_LISTEN=0.0.0.0:9187 STEADYTEXT_WORKER_LOG_FORMAT=json
EXPOSE 9187
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["steadytext-worker", "--healthcheck"]
ENTRYPOINT ["steadytext-worker"]

# The last one is what is built where no target is named.
FROM base AS server
COPY --from=build /out/ /
# initdb makes each new cluster's postgresql.conf from this file.
RUN echo "shared_preload_libraries = 'pg_steadytext'" >> /usr/share/postgresql/postgresql.conf.sample
