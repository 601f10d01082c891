"""`python -m streamtrain` is the same as `streamtrain`."""

import sys

from streamtrain.cli import main

sys.exit(main())
