"""How a model was cut, as `structure.json` records it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clusterprune.errors import WeightsError
from clusterprune.files.documents import Channels, ExampleDocument, Hexadecimal, check_seal, check_version, unique
from clusterprune.files.reading import ReadError, explain, read_json
from clusterprune.surgery.history import Stage

VERSION = 2
Width = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Names = Annotated[list[str], AfterValidator(unique)]


class StageDocument(BaseModel):
    """A cut, or a folding of norms, as `structure.json` records it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    rewired: bool
    attributes: dict[str, dict[str, Width | list[Width]]]
    kept: dict[str, Channels]
    example: list[ExampleDocument]
    added: Names
    folded: Names = []
    approximate: bool = False
    buffers: Names = []
    untrainable: str | None = None

    def stage(self) -> Stage:
        """Return the record of the stage."""
        fields = self.model_dump(exclude={"example"})
        return Stage(**fields, example=[entry.plain() for entry in self.example])


class StructureDocument(BaseModel):
    """What `structure.json` holds."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["clusterprune-model"]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    model: str
    stages: list[StageDocument]
    shared: dict[str, str]
    tensors_sha256: Hexadecimal | None = None
    sha256: Hexadecimal | None = None


def read_structure(path: Path) -> StructureDocument:
    """Read and check `structure.json`.

    Raises
    ------
    WeightsError
        If it is missing, damaged, altered or of another version.
    """
    try:
        content = check_version(read_json(path), VERSION)
        document = StructureDocument.model_validate(content)
        check_seal(content)
    except ReadError as error:
        if error.missing:
            raise WeightsError(f"{path} does not exist; give the folder that clusterprune.save wrote") from error
        raise WeightsError(f"{path} is not a valid model description: it {error}; save the model again") from error
    except ValidationError as error:
        raise WeightsError(
            f"{path} is not a valid model description ({explain(error)}); save the model again"
        ) from error
    return document
