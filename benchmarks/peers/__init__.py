"""smoldiag measured beside other tools and the physical floor. Each prints its figures and their ratios in one run."""
