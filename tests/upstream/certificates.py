"""Certificates for upstreams over TLS, made by openssl."""

import ssl
import subprocess
from pathlib import Path

from tests import needs


def make(folder: Path, name: str, *alternatives: str) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key; alternatives are such as `DNS:dns.example`."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    line = [needs.command("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    line += ["-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*line, "-addext", f"subjectAltName={','.join(alternatives)}"], check=True, capture_output=True)
    return certificate, key


def server(certificate: Path, key: Path, clients: Path | None = None) -> ssl.SSLContext:
    """What a server needs that shows this certificate, and perhaps wants one of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context
