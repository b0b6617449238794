# The worker, its commands, and the samples of the quickstart. docs/how-to/deploy.md says how it is used.
#
#   docker build -t order-relay .
#   docker run --rm order-relay worker --help

# The Python that the tests run on; requirements/ holds wheels for 3.11 to 3.14.
ARG PYTHON=python:3.11.15-slim-bookworm

# --- everything that needs pip ------------------------------------------------------------------
FROM ${PYTHON} AS builder
WORKDIR /build

# First what changes rarely: these layers are kept until a lock file changes.
COPY requirements/build.txt requirements/run.txt requirements/
RUN python -m pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: -r requirements/build.txt
# Ready-made wheels only, so no compiler. The one exception is faust-streaming, which has none for
# Linux on arm64 and installs as plain Python (scripts/venv does the same).
RUN case "$(uname -m)" in aarch64 | arm64) source="--no-binary faust-streaming" ;; esac; \
    python -m pip wheel --no-cache-dir --disable-pip-version-check --no-build-isolation \
        --require-hashes --only-binary :all: ${source:-} -w wheels -r requirements/run.txt

COPY pyproject.toml LICENSE ./
COPY order_relay order_relay
RUN python -m pip wheel --no-cache-dir --disable-pip-version-check --no-build-isolation \
        --no-deps -w wheels .

# Without pip in it; installing compiles to bytecode, which a read-only file system could not.
RUN python -m venv --without-pip /opt/order-relay
RUN python -m pip --python /opt/order-relay/bin/python install --no-cache-dir \
        --disable-pip-version-check --no-index --no-deps wheels/*.whl

# This application on top of the packages: consumers, tables, and the samples of the demo.
COPY app /opt/order-relay/application/app
COPY agents /opt/order-relay/application/agents
COPY tables /opt/order-relay/application/tables
COPY demo /opt/order-relay/application/demo
RUN python -m compileall -q /opt/order-relay/application

# --- what runs ----------------------------------------------------------------------------------
FROM ${PYTHON}

COPY --from=builder /opt/order-relay /opt/order-relay
# A volume that is mounted here gets this owner.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/order-relay

ENV PATH=/opt/order-relay/bin:$PATH \
    PYTHONPATH=/opt/order-relay/application \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/order-relay \
    DATA_DIR=/var/lib/order-relay \
    WEB_HOST=0.0.0.0
WORKDIR /var/lib/order-relay
# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 6066

# Liveness, not readiness: a worker that waits for Kafka, or for a partition, is well.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('WEB_PORT', '6066') + '/health/live', timeout=4)"]

# No shell in between: SIGTERM reaches the worker.
ENTRYPOINT ["order-relay"]
CMD ["worker", "-l", "info"]
