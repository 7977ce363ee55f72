from dataclasses import dataclass


@dataclass
class ClassMeasure:
    name: str
    unit: str
    voxels: int = 0
    size: float = 0
    low: float = 0
    high: float = 0
    components: int = 0
    mean: float = 0


def measure(s):
    return [ClassMeasure(c.name, "ml") for c in s.classes[1:]]
