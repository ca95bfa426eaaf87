# em_assets and everything it needs, at the versions of constraints.txt. Built by docker-compose.yml.
FROM python:3.12-slim-bookworm

RUN useradd --create-home --uid 1000 em
WORKDIR /app
RUN mkdir -p /app /data && chown em:em /app /data

# The dependencies first: they change less often than the code.
COPY --chown=em:em pyproject.toml constraints.txt README.md LICENSE em_assets_default_target.pth ./
COPY --chown=em:em em_assets/__init__.py em_assets/__init__.py
RUN pip install --no-cache-dir --constraint constraints.txt ".[sample,view]"

COPY --chown=em:em . .
RUN pip install --no-cache-dir --no-deps --constraint constraints.txt .

USER 1000
ENV EM_ASSETS_ROOT=/data/em \
    EM_ASSETS_CACHE=/data/cache \
    DAGSTER_HOME=/data/dagster
VOLUME /data
ENTRYPOINT ["deploy/container.sh"]
CMD ["ui"]
