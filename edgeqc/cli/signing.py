"""`edgeqc engine keygen|sign|trust`: keys, signatures, and whose are believed."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeqc.cli.console import show, talk, tell
from edgeqc.cli.exits import Exit
from edgeqc.errors import PackageError

if TYPE_CHECKING:
    from edgeqc.inference.trust import Trust

TrustOption = Annotated[
    Path | None,
    typer.Option("--trust", help="Folder of trusted public keys; default: /etc/edgeqc/trust.", envvar="EDGEQC_TRUST"),
]


def keys_of(folder: Path | None, *, allow_unsigned: bool = False) -> Trust:
    """The keys in the folder that was named, or in the one that a configuration has by default."""
    from edgeqc.inference.trust import read_trust  # noqa: PLC0415 - heavy

    return read_trust(_folder(folder), allow_unsigned=allow_unsigned)


def keygen(
    name: Annotated[str, typer.Argument(help="Whose key, e.g. quality; also the name of its files.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.key and NAME.pub.")] = Path(),
    password: Annotated[bool, typer.Option("--password", help="Ask for a password that protects the key.")] = False,
) -> None:
    """Make a key pair. NAME.key signs and stays with you; NAME.pub goes to each box: edgeqc engine trust NAME.pub."""
    from edgeqc.inference.signature import FILE_NAME, make_key  # noqa: PLC0415 - heavy

    if not FILE_NAME.fullmatch(name):
        raise typer.BadParameter(f"{name}: letters, digits, . _ - only")
    secret = _new_password() if password else None
    found = make_key(out / f"{name}.key", out / f"{name}.pub", password=secret)
    tell(f"{out / name}.key  private: keep it, whoever has it can sign")
    tell(f"{out / name}.pub  public: for every box that is to trust it")
    tell(f"fingerprint {found}")


def sign(
    folder: Annotated[Path, typer.Argument(help="The package's folder.")],
    key: Annotated[
        Path | None, typer.Option(help="Private key, PEM. Default: this box's own, state/keys/local.key.")
    ] = None,
    once: Annotated[
        Path | None,
        typer.Option(metavar="TRUST", help="Use a key that is forgotten; its public half goes into this folder."),
    ] = None,
) -> None:
    """Sign a package as it stands; one that the daemon would refuse is not signed."""
    from edgeqc.inference.signature import load_key, local_key  # noqa: PLC0415 - heavy
    from edgeqc.inference.writing import sign_folder, sign_once  # noqa: PLC0415 - heavy
    from edgeqc.loading import default_paths  # noqa: PLC0415 - heavy

    if once is not None:
        if key is not None:
            raise typer.BadParameter("--once makes a key of its own; leave --key out")
        package = sign_once(folder, once, name=folder.absolute().parent.name)
        tell(f"{folder}: {package.name} signed; its key is forgotten, {once} trusts it")
        return
    private = load_key(key) if key is not None else local_key(default_paths()[0] / "keys")
    package = sign_folder(folder, private)
    assert package.signature is not None  # noqa: S101 - sign_folder made it
    tell(
        f"{folder}: {package.name}, {len(package.signature.files)} files signed, key {package.signature.fingerprint[:16]}"
    )


def trust(
    key: Annotated[Path | None, typer.Argument(help="Public key to trust from now on; without one, list all.")] = None,
    name: Annotated[str, typer.Option(help="Its name in the folder; default: the file's own.")] = "",
    folder: TrustOption = None,
    fingerprint: Annotated[
        str, typer.Option(help="What its owner told you: then nothing is asked, and another key is refused.")
    ] = "",
) -> None:
    """Trust a public key: packages that it signed may run here. Or list whom this box trusts."""
    from edgeqc.inference import signature  # noqa: PLC0415 - heavy
    from edgeqc.inference.trust import add_key  # noqa: PLC0415 - heavy

    if key is None:
        signers = keys_of(folder).signers
        show(("signer", "fingerprint"), [(signer, signature.fingerprint(public)) for public, signer in signers.items()])
        if not signers:
            talk(f"{_folder(folder)}: no keys; no package may run here unless engines.unsigned says so")
        return
    found = signature.fingerprint(signature.load_public(key))
    if fingerprint and fingerprint.lower().replace(":", "") != found:
        raise PackageError(f"{key}: its fingerprint is {found}, not {fingerprint}: this is somebody else's key")
    if not fingerprint:
        talk(f"{key}: fingerprint {found}")
        talk(
            "Compare it with what the key's owner reads to you. Whoever has this key decides what passes on this line."
        )
        if not typer.confirm("Trust it?", err=True):
            raise typer.Exit(Exit.FAILED)
    known, _ = add_key(_folder(folder), key, name=name)
    tell(f"{_folder(folder) / known}.pub")


def _folder(folder: Path | None) -> Path:
    from edgeqc.settings import EngineSettings  # noqa: PLC0415 - heavy

    return folder if folder is not None else EngineSettings().trust


def _new_password() -> bytes:
    first, again = getpass.getpass("Password for the key: "), getpass.getpass("Once more: ")
    if first != again or not first:
        raise typer.BadParameter("the two differ, or are empty")
    return first.encode()
