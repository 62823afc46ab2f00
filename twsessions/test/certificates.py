"""
Certificates for tests: an authority's, and one that it has signed.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["makeCertificates"]


def makeCertificates(directory: Path) -> None:
    """
    Write C{ca.pem}, C{server.pem} (for 127.0.0.1 and localhost) and its key.
    """

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.timezone.utc)
    made = {}
    may = dict.fromkeys(
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement"
        " key_cert_sign crl_sign encipher_only decipher_only".split(),
        False,
    )
    for who, issuer in (("ca", "ca"), ("server", "ca")):
        key = made[who] = ec.generate_private_key(ec.SECP256R1())
        usage = may | {"key_cert_sign": who == "ca", "digital_signature": who != "ca"}
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name(who))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(who == "ca", None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(made[issuer].public_key()),
                critical=False,
            )
            .sign(made[issuer], hashes.SHA256())
        )
        (directory / f"{who}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{who}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
