# The service with vlmo-small, over the built-in icons or images of yours. See docs/serving.md.
#
#   docker build --tag vlmo .
#   docker run --publish 127.0.0.1:8000:8000 vlmo
#   docker run --publish 127.0.0.1:8000:8000 --volume "$PWD/photos:/images:ro" --volume vlmo-index:/index vlmo
#   docker run --publish 127.0.0.1:8000:8000 --volume "$PWD/model:/model:ro" --volume "$PWD/index:/index:ro" vlmo
#
# The default build of torch brings the CUDA libraries; for the smaller CPU build, name an index that has it:
# docker build --build-arg PIP_EXTRA_INDEX_URL=... .
FROM python:3.12-slim AS build
WORKDIR /source
ARG PIP_EXTRA_INDEX_URL=
RUN python -m venv /venv
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src src
RUN /venv/bin/pip install --no-cache-dir '.[quickstart]'

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home vlmo && mkdir /images /index /model && chown vlmo /index
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
USER vlmo
WORKDIR /home/vlmo
RUN vlmo quickstart --fast --run-dir icons
EXPOSE 8000
VOLUME ["/index"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
# More options of vlmo serve. What is in /images is indexed first, by the model in /model if there is one.
ENTRYPOINT ["sh", "-euc", "model=vlmo-small; if [ -e /model/config.json ]; then model=/model; fi; \
    if [ -n \"$(ls -A /images)\" ]; then vlmo index \"$model\" /images --out /index; fi; \
    if [ -e /index/index.json ]; then index=/index; else index=/home/vlmo/icons/fast/index; fi; \
    exec vlmo serve \"$model\" --index \"$index\" --host 0.0.0.0 --port 8000 \"$@\"", "vlmo"]
