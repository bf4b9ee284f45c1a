"""Where the folders beside the package are: in the checkout, or inside an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).parent
ROOT = PACKAGE / "_root" if (PACKAGE / "_root").is_dir() else PACKAGE.parent
CLOUD_PROFILES = ROOT / "cloud_profiles"
KNOWLEDGE = PACKAGE / "knowledge"
