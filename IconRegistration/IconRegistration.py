"""The Slicer module. It only wires: what it wires lives in IconRegistrationLib."""

from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleLogic


class IconRegistration(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "ICON Registration"
        parent.categories = ["Registration"]
        parent.dependencies = []
        parent.contributors = ["IconRegistration developers"]
        parent.helpText = (
            "Deformable registration of two volumes and their segmentations, with ICON networks or without any. "
            "From the Python console: IconRegistration.IconRegistrationLogic().register(fixed, moving)."
        )
        parent.acknowledgementText = (
            "If you use a network, cite Tian et al., GradICON (CVPR 2023), uniGradICON (MICCAI 2024) or "
            "multiGradICON (WBIR 2024)."
        )
        # There is no panel yet: the module opens its door to the Python console and to scripts only.
        parent.hidden = True


class IconRegistrationLogic(ScriptedLoadableModuleLogic):
    """The console's door."""

    def register(self, fixed, moving, **options):
        """`IconRegistrationLib.mrml.registration.register_nodes`, documented there: nodes in, nodes and report out."""
        from IconRegistrationLib.mrml.registration import register_nodes

        return register_nodes(fixed, moving, **options)
