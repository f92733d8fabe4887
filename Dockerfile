# fedhp for real devices, one image for the server and one for devices (docs/devices.md):
#   docker build --target server -t fedhp-server .
#   docker build --target device -t fedhp-device .
FROM python:3.12-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 HOME=/tmp
COPY constraints.txt pyproject.toml README.md LICENSE /source/
COPY clients /source/clients
COPY fedhp /source/fedhp
COPY scenarios /source/scenarios
COPY strategies /source/strategies
WORKDIR /fleet
ENTRYPOINT ["fedhp"]

FROM base AS server
RUN pip install -c /source/constraints.txt "/source[server]"
EXPOSE 8000
USER 1000
CMD ["serve", "start", "/fleet"]

# Without PyTorch: "/source[torch]" instead is for networks other than an MLP or a 1D convolution.
FROM base AS device
RUN pip install -c /source/constraints.txt /source
USER 1000
CMD ["device", "check"]
