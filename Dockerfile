# PostgreSQL 17 with pg_steadytext, pgvector and pgTAP.
#
#     docker build -t pg_steadytext .
#     docker run -e POSTGRES_PASSWORD=secret -p 5432:5432 pg_steadytext
#
# Then, in any database: CREATE EXTENSION pg_steadytext CASCADE;

FROM rust:1.95-bookworm AS rust

FROM postgres:17-bookworm AS server
# No pinned versions: the archive keeps only the newest of each package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends postgresql-17-pgtap postgresql-17-pgvector \
    && rm -rf /var/lib/apt/lists/*

# The same image as the server's, so that headers and server are of one version.
FROM server AS build
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

FROM server
COPY --from=build /out/ /
# initdb makes each new cluster's postgresql.conf from this file.
RUN echo "shared_preload_libraries = 'pg_steadytext'" >> /usr/share/postgresql/postgresql.conf.sample
