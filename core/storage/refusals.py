"""Whose fault it is that a bucket refuses: nobody's, everything's, or one object's.

404, 409, 412 for an object ──────> ObjectChanged: it is gone, or another one
403, 400 and the like for one ────> Refused: perhaps it alone; whoever reads objects finds out
all else, whatever was asked ─────> Unavailable: credentials, throttling, outages, networks
"""

from audiofuse.core.errors import Reason, Rejected, Unavailable

CHANGED = frozenset({
    "404", "NoSuchKey", "NotFound", "412", "PreconditionFailed",
    "409", "ConditionalRequestConflict",  # two wrote at once: one has won
})  # fmt: skip
ONE_OBJECTS = frozenset({
    "InvalidObjectState",  # of an archive class, and not restored
    "400", "InvalidRequest",  # encrypted with a key that whoever reads must send (SSE-C)
    "403", "AccessDenied", "Forbidden",  # a policy; the numbers are HEAD's, which has no body
    "KMS.AccessDeniedException", "KMS.DisabledException", "KMS.InvalidKeyUsageException",
    "KMS.InvalidStateException", "KMS.KMSInvalidStateException", "KMS.NotFoundException",
})  # fmt: skip


ADVICE = {
    "InvalidObjectState": "restore it from its archive class",
    "400": "it may be encrypted with a key that only its uploader has (SSE-C)",
    "InvalidRequest": "it may be encrypted with a key that only its uploader has (SSE-C)",
}
KMS_ADVICE = "enable its key, and allow it to be used for decryption"
POLICY_ADVICE = "a policy keeps it from being read"


class Denied(Rejected):
    """The object may not be read; if object after object is denied, it is not the objects' fault.

    One that is archived, or that needs its uploader's key, is ``Rejected`` and no more: that says
    nothing about any other.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.UNREADABLE, detail)


class Refused(Unavailable):
    """The object that was asked for is refused, perhaps like everything else."""

    def __init__(self, detail: str, code: str) -> None:
        """Say what was refused, and S3's own word for it."""
        super().__init__(detail)
        self.code = code

    @property
    def verdict(self) -> Rejected:
        """What this means if it is the object alone that is refused."""
        if advice := ADVICE.get(self.code):
            return Rejected(Reason.UNREADABLE, f"{self}; {advice}")
        return Denied(f"{self}; {KMS_ADVICE if self.code.startswith('KMS.') else POLICY_ADVICE}")
