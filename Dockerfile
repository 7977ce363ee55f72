# docker build --target cpu  -t segapp .        (see TORCH below)
# docker build --target cuda -t segapp:cuda .
# docker run --rm -it --user "$(id -u):$(id -g)" -v "$PWD:/data" --entrypoint python segapp -m segapp.web.users /data/users.txt NAME
# docker run --rm -p 127.0.0.1:7860:7860 --user "$(id -u):$(id -g)" -v "$PWD/runs/brain:/model:ro" -v "$PWD/users.txt:/users.txt:ro" segapp
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" segapp predict /data/runs/brain /data/scans --out /data/results

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 HF_HOME=/tmp/huggingface
RUN useradd --create-home --uid 10001 segapp
WORKDIR /app
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD \
    ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 7860, timeout=3); c.request('GET', '/'); c.getresponse()"]
ENTRYPOINT ["segapp"]
# Outside the container it can be reached, so it asks for names and passwords: --auth-file.
CMD ["app", "/model", "--host", "0.0.0.0", "--port", "7860", "--auth-file", "/users.txt"]

FROM base AS cpu
# What to hand to pip for torch: as it stands PyPI's build, which brings CUDA along. For a smaller
# image pass what pytorch.org prints for CPU: --build-arg TORCH="torch torchvision …"
ARG TORCH="torch torchvision"
RUN pip install $TORCH
COPY . .
RUN pip install ".[openvino]"
USER segapp

FROM base AS cuda
# PyPI's Linux build of torch carries the CUDA libraries; the host brings its driver (--gpus all).
RUN pip install torch torchvision
COPY . .
RUN pip install ".[openvino]"
USER segapp
