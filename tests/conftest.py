"""Every test asks the installed classes themselves, not what an earlier run was told."""

import os

os.environ["MAPSPEC_CACHE"] = ""
