"""A certificate authority of the tests' own: the API server's certificate, and those of its clients."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests import needs

DAYS = "2"


class Authority:
    """A key and a certificate in a folder, with which others are signed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / "ca.crt"
        self.key = folder / "ca.key"
        _request(self.certificate, self.key, "/CN=kdns tests", ["basicConstraints=critical,CA:TRUE"], [])

    def server(self, certificate: Path, key: Path, names: list[str], addresses: list[str]) -> None:
        """Write a server's certificate."""
        also = ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses)])
        self._sign(certificate, key, "/CN=kube-apiserver", [f"subjectAltName={also}", "extendedKeyUsage=serverAuth"])

    def client(self, certificate: Path, key: Path, user: str, *groups: str) -> None:
        """Write a client's certificate, whose subject says who it is."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        self._sign(certificate, key, subject, ["extendedKeyUsage=clientAuth"])

    def _sign(self, certificate: Path, key: Path, subject: str, extensions: list[str]) -> None:
        signing = ["-CA", str(self.certificate), "-CAkey", str(self.key)]
        _request(certificate, key, subject, ["basicConstraints=critical,CA:FALSE", *extensions], signing)


def key_pair(private: Path, public: Path) -> None:
    """Write the keys with which the API server signs tokens and reads them."""
    openssl = needs.command("openssl")
    _run([openssl, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(private)])
    _run([openssl, "pkey", "-in", str(private), "-pubout", "-out", str(public)])


def _request(certificate: Path, key: Path, subject: str, extensions: list[str], signing: list[str]) -> None:
    # Renamed in this order: a server that looks at its files between the two finds a pair that doesn't match and
    # looks again; it never finds half a file.
    new_key, new_certificate = key.with_suffix(".new-key"), certificate.with_suffix(".new-crt")
    line = [needs.command("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    line += ["-days", DAYS, "-subj", subject, "-keyout", str(new_key), "-out", str(new_certificate)]
    for extension in extensions:
        line += ["-addext", extension]
    _run([*line, *signing])
    new_key.rename(key)
    new_certificate.rename(certificate)


def _run(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(line)}:\n{done.stderr}"
