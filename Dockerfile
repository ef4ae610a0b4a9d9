# The image that runs `mtok serve`; with another command it is any other `mtok` command, the simulator included.
#   docker build -t mtok .
#   docker run -p 8000:8000 -v "$PWD/policies:/etc/mtok/policies:ro" -v mtok:/var/lib/mtok mtok

FROM python:3.12-slim AS build
RUN python -m venv /opt/mtok
ENV PATH=/opt/mtok/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# What changes seldom first: a change in gateway/ installs nothing again.
COPY requirements.lock ./
RUN pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY policies/gpus.yaml policies/hosted.yaml ./policies/
COPY gateway ./gateway
RUN pip install --no-deps --no-build-isolation .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/mtok mtok \
 && install -d -o mtok -g mtok /var/lib/mtok /etc/mtok/policies
COPY --from=build /opt/mtok /opt/mtok
ENV PATH=/opt/mtok/bin:$PATH PYTHONUNBUFFERED=1 MTOK_DATA_DIR=/var/lib/mtok
USER mtok
WORKDIR /var/lib/mtok
VOLUME /var/lib/mtok
EXPOSE 8000
# Whether it serves at all; whether requests should come is /readyz, which is for whoever sends them.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# SIGTERM drains: running answers finish (MTOK_DRAIN_TIMEOUT_S, 30 s), so give `docker stop` more than that.
STOPSIGNAL SIGTERM
ENTRYPOINT ["mtok"]
CMD ["serve", "--policies", "/etc/mtok/policies", "--host", "0.0.0.0"]
