"""`python -m seqloom` is `seqloom`."""

import sys

from seqloom_cli.verbs import main

sys.exit(main())
