"""Keys and certificates: a hub's own authority and its server's certificate, and the pair of keys of a site.

Curves are P-384: Flower takes keys of NIST curves alone.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from osmotic.storage.atomic import write_bytes

PEM = serialization.Encoding.PEM
YEAR = datetime.timedelta(days=365)


def make_authority(folder: Path) -> None:
    """ca.key and ca.crt, valid for ten years; nothing that lies there already is replaced."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "osmotic hub")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _certificate(name, name, key.public_key(), 10 * YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )
    write_private(folder / "ca.key", _pem(key))
    write_bytes(folder / "ca.crt", certificate.public_bytes(PEM))


def make_server(folder: Path, hosts: Sequence[str]) -> None:
    """server.key and server.crt of the authority in the folder, valid for two years under all of these names and addresses."""
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    certificate = (
        _certificate(name, authority.subject, key.public_key(), 2 * YEAR)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(signer, hashes.SHA384())
    )
    # In the place of earlier ones. Whoever reads between the two writes finds a key and a certificate that do not fit; the hub is
    # started anew after it anyway.
    fresh = folder / ".server.key"
    fresh.unlink(missing_ok=True)
    write_private(fresh, _pem(key))
    os.replace(fresh, folder / "server.key")
    write_bytes(folder / "server.crt", certificate.public_bytes(PEM))


def hosts_of(folder: Path) -> list[str]:
    """Names and addresses of the server's certificate in the folder."""
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def ends(file: Path) -> datetime.datetime:
    """When a certificate ends, in UTC. Raises: ValueError for a file that is none."""
    return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc


def make_key(path: Path) -> None:
    """A private key at `path`, and the public one beside it with `.pub`, both as OpenSSH writes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_private(path, private)
    write_bytes(path.with_name(f"{path.name}.pub"), public + b"\n")


def is_certificate(path: Path) -> bool:
    """Whether a file holds a certificate."""
    try:
        x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def is_public_key(data: bytes) -> bool:
    """Whether these bytes are a public key that Flower takes."""
    try:
        key = serialization.load_ssh_public_key(data.strip())
    except (ValueError, TypeError, UnicodeError):
        return False
    except Exception:  # what the library raises for a kind of key that it does not know
        return False
    return isinstance(key, ec.EllipticCurvePublicKey)


def write_private(path: Path, data: bytes) -> None:
    """Writes a file that its owner alone may read; it is never readable by others, not even for a moment."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "wb") as opened:
        opened.write(data)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # An hour of grace: clocks of sites differ.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + valid)
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
