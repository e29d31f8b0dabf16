# The service: vlmo serve. See docs/serving.md.
#
#   docker build --tag vlmo .
#   docker run --publish 127.0.0.1:8000:8000 --volume "$PWD/model:/model:ro" --volume "$PWD/index:/index:ro" vlmo
#
# The default build of torch brings the CUDA libraries; for the smaller CPU build, name an index that has it:
# docker build --build-arg PIP_EXTRA_INDEX_URL=... .
FROM python:3.12-slim AS build
WORKDIR /source
ARG PIP_EXTRA_INDEX_URL=
RUN python -m venv /venv
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /venv/bin/pip install --no-cache-dir '.[serve]'

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home vlmo
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
USER vlmo
WORKDIR /home/vlmo
EXPOSE 8000
VOLUME ["/model", "/index"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["vlmo", "serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--index", "/index"]
