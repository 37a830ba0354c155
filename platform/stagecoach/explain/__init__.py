"""Why a run is pending, why it stopped, what was lost and what happens next, from the bucket alone (and the cluster where it answers).

`resolve` finds what a person named, `facts` reads it, `verdict` decides (pure), `sentence` words it (pure).
"""
