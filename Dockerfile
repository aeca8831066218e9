# The image of kdns, drop-in for CoreDNS's: the entry point is /coredns, the port is 53.
# It runs as 65532 with a read-only root, without /tmp and $HOME, with no_new_privs and no capability but NET_BIND_SERVICE.

FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends libcap2-bin python3 python3-venv
WORKDIR /src
COPY requirements.txt requirements-build.txt ./
# /opt/kdns is what ships, without pip; /opt/tools is what builds it.
# Only wheels, each with a hash from the lock: no compiler is needed and no stranger's code runs here.
# Bytecode comes last, for everything at once.
RUN python3 -m venv --without-pip /opt/kdns \
    && python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --only-binary :all: --require-hashes --requirement requirements-build.txt \
    && /opt/tools/bin/pip --python /opt/kdns/bin/python3 install --no-cache-dir --no-compile \
        --only-binary :all: --require-hashes --requirement requirements.txt
COPY pyproject.toml ./
COPY kdns kdns
RUN /opt/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/tools/bin/pip --python /opt/kdns/bin/python3 install --no-deps --no-index --no-compile /tmp/wheel/*.whl \
    # The client library is 118 MB of generated code, read only for a kubeconfig: 13 MB as a zip, imported as fast.
    && cd /opt/kdns/lib/python3.11/site-packages \
    && python3 -c 'import zipfile as z; z.PyZipFile("kubernetes.zip", "w", z.ZIP_DEFLATED).writepy("kubernetes")' \
    && echo kubernetes.zip > kubernetes.pth \
    && rm -r kubernetes \
    # Unchecked: the root is read-only, so no source can change, and no layer's timestamps matter.
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/kdns/lib \
    # A capability on a file is all that an ordinary user has for port 53; only this copy of the interpreter has it,
    # because the kernel refuses to start such a file where the capability isn't to be had (a pod that drops ALL).
    && cp /usr/bin/python3.11 /opt/kdns/bin/python3-port53 \
    && setcap cap_net_bind_service=+ep /opt/kdns/bin/python3-port53 \
    # -P: the folder of the script, here /, is no place to import from.
    && printf '%s\n' '#!/opt/kdns/bin/python3-port53 -P' 'import sys' 'from kdns.coredns import main' 'sys.exit(main())' \
        > /coredns \
    && chmod 755 /coredns


FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/*
COPY --from=build /opt/kdns /opt/kdns
COPY --from=build /coredns /coredns
RUN ln -s /opt/kdns/bin/kdns /usr/local/bin/kdns && ln -s /coredns /usr/local/bin/coredns
# kubernetes.aio asks for a home folder when it is imported, and 65532 has no entry in /etc/passwd.
ENV HOME=/ PYTHONDONTWRITEBYTECODE=1
WORKDIR /
USER 65532:65532
EXPOSE 53 53/udp
ENTRYPOINT ["/coredns"]
