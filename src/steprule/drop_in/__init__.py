"""What lets the package stand where ``torch.optim`` stood: its classes and its module paths.

Everything is found from the registry; a new optimizer has nothing to do for it.
"""

from steprule.drop_in.classes import pass_for_torchs as pass_for_torchs
from steprule.drop_in.modules import add_torchs_paths as add_torchs_paths
