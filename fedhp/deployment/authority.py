"""An authority of one's own, and the server's certificate that it signs."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhp.deployment.keys import check_private, new_key, write_private
from fedhp.deployment.reading import reading
from fedhp.errors import DeploymentError
from fedhp.files.atomic import replacing

_AUTHORITY_DAYS, _SERVER_DAYS = 3650, 730
_SOON = timedelta(days=30)
_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_][A-Za-z0-9._-]*")
_LONGEST_NAME, _LONGEST_LABEL = 253, 63  # RFC 1035, 2.3.4
_ALWAYS = ("localhost", "127.0.0.1", "::1")  # a device on the server itself, and `fedhp serve run`


def make_authority(key_file: Path, certificate_file: Path) -> None:
    """Makes an authority: a key, unless there is one, and a certificate that it signs itself.

    Raises:
        DeploymentError: If the key that is there is open to others, or none.
    """
    key = _signer(key_file) if key_file.exists() else new_key()
    # Two authorities of one name could not be told apart in what a device's log says.
    name = _name(f"fedhp authority {x509.random_serial_number():x}"[:64])
    builder = _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    _write(key_file, certificate_file, key, builder.sign(key, hashes.SHA384()))


def make_server_certificate(
    authority_key: Path, authority_file: Path, key_file: Path, certificate_file: Path, hosts: Sequence[str]
) -> None:
    """Makes a server's key, and a certificate for the names and addresses under which devices reach it.

    Raises:
        DeploymentError: If the authority's key is missing or open, or a host is none.
    """
    signer, authority = _signer(authority_key), read_certificate(authority_file)
    key, names = new_key(), dict.fromkeys([*hosts, *_ALWAYS])
    alternatives = x509.SubjectAlternativeName([_general_name(host) for host in names])
    builder = _builder(_name("fedhp server"), authority.subject, key.public_key(), _SERVER_DAYS)
    builder = builder.add_extension(alternatives, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    of_signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    signed = builder.add_extension(of_signer, critical=False).sign(signer, hashes.SHA384())
    _write(key_file, certificate_file, key, signed)


def hosts_of(path: Path) -> list[str]:
    """Returns the names and addresses that a certificate is for.

    Raises:
        DeploymentError: If it is missing or none.
    """
    extensions = read_certificate(path).extensions
    try:
        extension = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    return [*extension.value.get_values_for_type(x509.DNSName), *map(str, addresses)]


def read_certificate(path: Path, remedy: str = "") -> x509.Certificate:
    """Returns a certificate.

    Args:
        path: The file.
        remedy: What to do where it is none.

    Raises:
        DeploymentError: If it is missing or none.
    """
    with reading(path, "a certificate", "is no certificate, or a damaged one", remedy):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        _ = certificate.extensions  # which are read only now
    return certificate


def check_valid(path: Path, remedy: str) -> str:
    """Refuses a certificate that is out of date.

    Returns:
        A remark where it is soon; else nothing.

    Raises:
        DeploymentError: If it is missing, no certificate, or not valid now.
    """
    certificate, now = read_certificate(path, remedy), datetime.now(UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        raise DeploymentError(
            f"{path} is valid from {begins:%Y-%m-%d %H:%M} UTC on; set this machine's clock"
        )
    if now > ends:
        raise DeploymentError(f"{path} expired on {ends:%Y-%m-%d %H:%M} UTC; {remedy}")
    return f"{path} expires on {ends:%Y-%m-%d}: {remedy}" if ends - now < _SOON else ""


def _signer(path: Path) -> ec.EllipticCurvePrivateKey:
    check_private(path)
    with reading(path, "an authority's key", "is no key of an authority that 'fedhp serve init' made"):
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    begins = datetime.now(UTC) - timedelta(hours=1)  # clocks of small devices go wrong
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(begins).not_valid_after(begins + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def is_host(host: str) -> bool:
    """Says whether a machine can have that name or address."""
    with suppress(ValueError):
        return bool(ip_address(host))
    is_short = len(host) <= _LONGEST_NAME and all(len(one) <= _LONGEST_LABEL for one in host.split("."))
    return is_short and bool(_NAME.fullmatch(host))


def _general_name(host: str) -> x509.GeneralName:
    if not is_host(host):
        raise DeploymentError(f"--host {host!r} is neither a name nor an address of a machine")
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(
    key_file: Path, certificate_file: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_private(key_file, secret)
    with replacing(certificate_file) as unfinished:
        unfinished.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
