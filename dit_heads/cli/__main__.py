"""`python -m dit_heads.cli` is `dit-heads`; `accelerate launch -m dit_heads.cli train` starts it so."""

import sys

from dit_heads.cli.command import main

sys.exit(main())
