"""Signatures of model bundles: Ed25519 over ``SHA256SUMS``, which holds the hash of every other file, as OpenSSL makes them."""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gampen_ray import storage
from gampen_ray.errors import UserError

__all__ = ["SIGNATURE", "check_signature"]

SIGNATURE = "SHA256SUMS.sig"
"""Name of the file in a bundle: 64 bytes."""


def check_signature(bundle: str, checksums: bytes, public_key: str) -> None:
    """Check that the holder of a key has signed a bundle.

    Parameters
    ----------
    bundle
        URI of the bundle itself.
    checksums
        Content of its ``SHA256SUMS``.
    public_key
        File or s3:// URI of the Ed25519 public key, PEM.

    Raises
    ------
    UserError
        If the key is none, or the bundle has no signature by it.
    """
    try:
        key = load_pem_public_key(storage.read_bytes(public_key))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(
            f"require_signature: {public_key} holds no Ed25519 public key in PEM; write one with `openssl pkey -pubout`"
        )
    signature = storage.join(bundle, SIGNATURE)
    if not storage.exists(signature):
        raise UserError(f"bundle: {bundle} is not signed: no {SIGNATURE}; use a signed bundle, or leave require_signature out")
    try:
        key.verify(storage.read_bytes(signature), checksums)
    except InvalidSignature:
        raise UserError(
            f"bundle: {bundle} is not signed with the key of {public_key}: it was changed, or another key signed it"
        ) from None
