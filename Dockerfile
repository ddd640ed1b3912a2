# Four images from one file: --target triton, triton-vllm, gateway or ui. `make image` builds them.
#
# pip's own settings (an index, credentials) come in as a secret: --secret id=pip,src=pip.conf
# Wheels for a build without network come in as a folder:         --build-context wheels=<folder>, seen as /wheels

ARG TRITON_BASE=nvcr.io/nvidia/tritonserver:26.11-py3
ARG TRITON_VLLM_BASE=nvcr.io/nvidia/tritonserver:26.11-vllm-python-py3
ARG PYTHON_BASE=python:3.12-slim-bookworm

FROM scratch AS wheels


# ------------------------------------------------------------------------------------------------ what goes in

# The sources of this repository as a wheel, made with the setuptools that the lock file names.
FROM ${PYTHON_BASE} AS sources
WORKDIR /src
COPY requirements/dev.txt requirements/
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m pip install --no-cache-dir --target /tools --constraint requirements/dev.txt setuptools
COPY pyproject.toml LICENSE ./
COPY client client
COPY gateway gateway
COPY server server
RUN PYTHONPATH=/tools python3 -m pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist .

# Packages go into a virtual environment on top of the base's own Python: the stub of Triton's Python backend takes the
# environment whose `python3` is first on PATH. pip compiles what it installs, since nothing can at run time.
FROM ${TRITON_BASE} AS triton-packages
# cuda.txt pins what torch's CUDA build brings along, where pip gets that one.
COPY requirements/server.txt requirements/cuda.txt /requirements/
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv --without-pip /opt/triton-chat \
    && python3 -m pip --python /opt/triton-chat/bin/python3 install --no-cache-dir \
        --requirement /requirements/server.txt --constraint /requirements/cuda.txt

# This base's own Python has vLLM, and with it torch and transformers, which the environment takes from there; pip adds what
# is missing. A base without vLLM gets all of it from another lock file: --build-arg VLLM_LOCK=vllm.txt (the CPU build).
FROM ${TRITON_VLLM_BASE} AS triton-vllm-packages
ARG VLLM_LOCK=vllm-image.txt
COPY requirements/vllm-image.txt requirements/vllm.txt /requirements/
WORKDIR /requirements
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv --without-pip --system-site-packages /opt/triton-chat \
    && sort --unique vllm-image.txt "${VLLM_LOCK}" > lock.txt \
    && python3 -m pip --python /opt/triton-chat/bin/python3 install --no-cache-dir --no-deps --requirement lock.txt

FROM ${PYTHON_BASE} AS gateway-packages
COPY requirements/gateway.txt /requirements/
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv --without-pip /opt/triton-chat \
    && python3 -m pip --python /opt/triton-chat/bin/python3 install --no-cache-dir \
        --requirement /requirements/gateway.txt

FROM ${PYTHON_BASE} AS ui-packages
COPY requirements/ui.txt /requirements/
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv --without-pip /opt/triton-chat \
    && python3 -m pip --python /opt/triton-chat/bin/python3 install --no-cache-dir \
        --requirement /requirements/ui.txt

# The project's own files, for the same environment. A command whose packages an image lacks does not go in; what may be
# read and run does not depend on the checkout.
FROM ${TRITON_BASE} AS triton-files
WORKDIR /opt/triton-chat
COPY --from=sources /dist /dist
RUN python3 -m venv --without-pip . \
    && python3 -m pip --python bin/python3 install --no-cache-dir --no-deps --no-index /dist/*.whl \
    && rm -r bin/triton-chat-gateway lib/python3*/site-packages/chat_gateway
COPY model_repository model_repository
COPY models/tiny-chat models/tiny-chat
COPY LICENSE ./
RUN python3 -m compileall -q --invalidation-mode unchecked-hash model_repository \
    && chmod -R u=rwX,go=rX .

FROM ${TRITON_VLLM_BASE} AS triton-vllm-files
WORKDIR /opt/triton-chat
COPY --from=sources /dist /dist
RUN python3 -m venv --without-pip --system-site-packages . \
    && python3 -m pip --python bin/python3 install --no-cache-dir --no-deps --no-index /dist/*.whl \
    && rm -r bin/triton-chat-gateway lib/python3*/site-packages/chat_gateway
COPY model_repository model_repository
COPY models/tiny-chat models/tiny-chat
COPY LICENSE ./
RUN python3 -m compileall -q --invalidation-mode unchecked-hash model_repository \
    && chmod -R u=rwX,go=rX .

FROM ${PYTHON_BASE} AS gateway-files
WORKDIR /opt/triton-chat
COPY --from=sources /dist /dist
RUN python3 -m venv --without-pip . \
    && python3 -m pip --python bin/python3 install --no-cache-dir --no-deps --no-index /dist/*.whl \
    && rm -r bin/triton-chat-server lib/python3*/site-packages/triton_chat_server
COPY LICENSE ./
RUN chmod -R u=rwX,go=rX .

FROM ${PYTHON_BASE} AS ui-files
WORKDIR /opt/triton-chat
COPY ui ui
COPY LICENSE ./
RUN python3 -m compileall -q --invalidation-mode unchecked-hash ui \
    && chmod -R u=rwX,go=rX .


# ---------------------------------------------------------------------------------------------------- the images

FROM ${TRITON_BASE} AS triton
RUN groupadd --gid 10001 triton-chat \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp triton-chat \
    && install --directory --owner 10001 --group 10001 /models
COPY --from=triton-packages /opt/triton-chat /opt/triton-chat
COPY --from=triton-files /opt/triton-chat /opt/triton-chat
# HF_HOME: where a model that is named by its hub id is downloaded to.
ENV HOME=/tmp \
    HF_HOME=/models/huggingface \
    PATH=/opt/triton-chat/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/triton-chat
USER 10001:10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
# Loading may take long, with a download much longer; the first success ends the start period.
HEALTHCHECK --start-period=60m --interval=10s --timeout=10s --retries=3 CMD ["triton-chat-server", "probe", "ready"]
ENTRYPOINT ["triton-chat-server"]
CMD ["serve"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=""
LABEL org.opencontainers.image.title="triton-chat" \
      org.opencontainers.image.description="Chat LLMs on NVIDIA Triton, with continuous batching and token streaming" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"

# As `triton`. Which engine a model has is for its settings to say, or for TRITON_CHAT_ENGINE: both are in here.
FROM ${TRITON_VLLM_BASE} AS triton-vllm
RUN groupadd --gid 10001 triton-chat \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp triton-chat \
    && install --directory --owner 10001 --group 10001 /models
COPY --from=triton-vllm-packages /opt/triton-chat /opt/triton-chat
COPY --from=triton-vllm-files /opt/triton-chat /opt/triton-chat
ENV HOME=/tmp \
    HF_HOME=/models/huggingface \
    PATH=/opt/triton-chat/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/triton-chat
USER 10001:10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60m --interval=10s --timeout=10s --retries=3 CMD ["triton-chat-server", "probe", "ready"]
ENTRYPOINT ["triton-chat-server"]
CMD ["serve"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=""
LABEL org.opencontainers.image.title="triton-chat-vllm" \
      org.opencontainers.image.description="Chat LLMs on NVIDIA Triton, with vLLM as engine" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"

FROM ${PYTHON_BASE} AS python
RUN groupadd --gid 10001 triton-chat \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp triton-chat
ENV HOME=/tmp \
    PATH=/opt/triton-chat/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/triton-chat
STOPSIGNAL SIGTERM

FROM python AS gateway
COPY --from=gateway-packages /opt/triton-chat /opt/triton-chat
COPY --from=gateway-files /opt/triton-chat /opt/triton-chat
# `::` takes IPv4 as well.
ENV TRITON_CHAT_GATEWAY_HOST=:: \
    TRITON_CHAT_GATEWAY_PORT=9000
USER 10001:10001
EXPOSE 9000
HEALTHCHECK --start-period=60m --interval=10s --timeout=10s --retries=3 CMD ["python3", "-c", "import http.client, os; \
c = http.client.HTTPConnection('127.0.0.1', int(os.environ['TRITON_CHAT_GATEWAY_PORT']), timeout=8); \
c.request('GET', '/health/ready'); \
raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["triton-chat-gateway"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=""
LABEL org.opencontainers.image.title="triton-chat-gateway" \
      org.opencontainers.image.description="OpenAI's HTTP API over the models of triton-chat" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"

FROM python AS ui
COPY --from=ui-packages /opt/triton-chat /opt/triton-chat
COPY --from=ui-files /opt/triton-chat /opt/triton-chat
# The welcome names the machine's public address, for which Streamlit asks a server outside. `::` takes IPv4 as well.
ENV STREAMLIT_LOGGER_HIDE_WELCOME_MESSAGE=true \
    STREAMLIT_SERVER_ADDRESS=:: \
    STREAMLIT_SERVER_PORT=8501
USER 10001:10001
EXPOSE 8501
HEALTHCHECK --start-period=1m --interval=10s --timeout=10s --retries=3 CMD ["python3", "-c", "import http.client, os; \
c = http.client.HTTPConnection('127.0.0.1', int(os.environ['STREAMLIT_SERVER_PORT']), timeout=8); \
c.request('GET', '/_stcore/health'); \
raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["streamlit", "run", "/opt/triton-chat/ui/app.py"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=""
LABEL org.opencontainers.image.title="triton-chat-ui" \
      org.opencontainers.image.description="Chat page over the gateway of triton-chat" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
