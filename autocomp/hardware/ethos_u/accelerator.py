"""For which NPU, in which system, a file is compiled: the three choices that Vela's figures depend on."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

#: Memory modes in which the operators of a model add up to the model. In the others ("Dedicated_Sram", "Sram_Only")
#: feature maps move between memories as the rest of the network leaves room, so that no table of kernels holds:
#: with Dedicated_Sram, single operators came to 4.8 to 9.0 times what Vela estimates for MobileNetV1.
ADDITIVE_MEMORY_MODES = ("Shared_Sram",)


class Accelerator(BaseModel):
    """The NPU and the memories around it, by the names that Vela and its `Arm/vela.ini` use.

    config: accelerator configuration, such as "ethos-u55-256" (256 multiply-accumulates a cycle). system: clock, and
    width and delay of each memory. memory_mode: where weights, feature maps and buffers lie.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    config: Literal[
        "ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512",
        "ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048",
    ]  # fmt: skip
    system: str = Field(pattern=r"^[A-Za-z0-9_]{1,80}$")
    memory_mode: str

    @field_validator("memory_mode")
    @classmethod
    def _adds_up(cls, value: str) -> str:
        if value not in ADDITIVE_MEMORY_MODES:
            raise ValueError(
                f"only {', '.join(ADDITIVE_MEMORY_MODES)} can be used, got {value!r:.40}: in other memory modes the "
                "latency of a network is not the sum of its kernels"
            )
        return value

    def __str__(self) -> str:
        return f"{self.config}, {self.system}, {self.memory_mode}"
