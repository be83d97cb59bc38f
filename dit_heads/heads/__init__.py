"""Names of attention heads (`HeadId`, `HeadSet`; standard library only), and the head sets that ship."""

from dit_heads.heads.names import BlockId, HeadId, HeadSet

__all__ = ["BlockId", "HeadId", "HeadSet"]
