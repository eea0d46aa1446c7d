"""Signed bundles, as OpenSSL and `cryptography` sign them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import CHECKSUMS, bundle_digest, load_bundle
from gampen_ray.inference.signature import SIGNATURE
from tests.networks import bundle


@pytest.fixture
def model(tmp_path: Path) -> Path:
    bundle().save(str(tmp_path / "model"))
    return tmp_path / "model"


def public(key: object, path: Path) -> str:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))  # type: ignore[attr-defined]
    return str(path)


def sign(model: Path, key: Ed25519PrivateKey) -> None:
    (model / SIGNATURE).write_bytes(key.sign((model / CHECKSUMS).read_bytes()))


def test_a_bundle_signed_by_the_key_is_accepted_and_no_other(model: Path, tmp_path: Path) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    own = public(key, tmp_path / "key.pub")
    with pytest.raises(UserError, match=r"bundle: .*/model is not signed: no SHA256SUMS.sig; use a signed bundle, or leave"):
        bundle_digest(str(model), own)
    sign(model, other)
    with pytest.raises(UserError, match=r"is not signed with the key of .*key.pub: it was changed, or another key signed it"):
        bundle_digest(str(model), own)
    sign(model, key)
    assert bundle_digest(str(model), own) == bundle_digest(str(model))
    (model / "bundle.json").write_text((model / "bundle.json").read_text().replace("0.5", "0.6"))
    with pytest.raises(UserError, match="does not match its checksum"):
        load_bundle(str(model), bundle_digest(str(model), own))
    # Whoever changes the checksums too breaks the signature.
    (model / CHECKSUMS).write_text((model / CHECKSUMS).read_text().replace("a", "b"))
    with pytest.raises(UserError, match="it was changed"):
        bundle_digest(str(model), own)


def test_a_file_that_is_no_key_is_the_users_mistake(model: Path, tmp_path: Path) -> None:
    private = tmp_path / "private.pem"
    private.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for path in (public(generate_private_key(SECP256R1()), tmp_path / "ec.pub"), str(private), str(model / "bundle.json")):
        with pytest.raises(UserError, match=r"require_signature: .* holds no Ed25519 public key in PEM; write one with"):
            bundle_digest(str(model), path)
    with pytest.raises(UserError, match=r"absent.pub"):
        bundle_digest(str(model), str(tmp_path / "absent.pub"))


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl program")
def test_openssl_signs(model: Path, tmp_path: Path) -> None:
    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, cwd=tmp_path)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "key.pub")
    openssl("pkeyutl", "-sign", "-rawin", "-inkey", "key.pem", "-in", model / CHECKSUMS, "-out", model / SIGNATURE)
    assert bundle_digest(str(model), str(tmp_path / "key.pub")) == bundle_digest(str(model))
