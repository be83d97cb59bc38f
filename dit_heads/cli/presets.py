"""The `presets` command."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Presets:
    """List the named head sets with their effects, models and sources."""

    def run(self) -> None:
        """Print the list."""
        from dit_heads.heads.presets import shipped_presets

        for found in shipped_presets():
            print(f"{found.model} ({found.source})")
            for preset in found.presets:
                doubt = "" if preset.verified else "  (not verified)"
                print(f"  {preset.effect:<32}{preset.head_set}{doubt}")
