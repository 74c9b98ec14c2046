"""``from DVIDVolume import DVIDVolume``, as the tutorial of DVIDCloudStore has it."""

from diced.dvidcloud import DVIDVolume

__all__ = ["DVIDVolume"]
