"""The `presets` command."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Presets:
    """List head sets that have a name: what each does, to which model, and who says so."""

    def run(self) -> None:
        from dit_heads.heads.presets import shipped_presets

        for found in shipped_presets():
            print(f"{found.model} ({found.source})")
            for preset in found.presets:
                doubt = "" if preset.verified else "  (not verified)"
                print(f"  {preset.effect:<32}{preset.head_set}{doubt}")
