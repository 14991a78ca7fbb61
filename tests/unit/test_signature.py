"""Nobody but the holder of a trusted key can change what judges parts: every way to try it is refused, and says why."""

import base64
import hashlib
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import edgeqc
from edgeqc.errors import PackageError
from edgeqc.inference.package import load_package
from edgeqc.inference.signature import (
    SIGNATURE,
    fingerprint,
    load_key,
    load_public,
    local_key,
    make_key,
    read_signature,
    sign,
)
from edgeqc.inference.trust import Trust, add_key, read_trust
from edgeqc.inference.writing import read_folder, replace_folder, sign_folder, sign_once

ENGINES = Path(edgeqc.__file__).parents[1] / "engines"
DEMO = ENGINES / "demo-part" / "1"


@pytest.fixture
def key():
    return Ed25519PrivateKey.generate()


@pytest.fixture
def folder(tmp_path, key):
    """A copy of the demo package, signed with `key`."""
    copy = Path(shutil.copytree(DEMO, tmp_path / "part" / "1"))
    sign_folder(copy, key)
    return copy


@pytest.fixture
def trust(tmp_path, key):
    return Trust(folder=tmp_path / "trust", signers={key.public_key().public_bytes_raw(): "quality"})


def _refused(folder, trust, match):
    with pytest.raises(PackageError, match=match) as caught:
        load_package(folder, trust=trust)
    assert str(folder.parent) in str(caught.value)


def test_committed_package_is_signed_by_the_key_that_is_committed_with_it():
    package = load_package(DEMO, trust=read_trust(ENGINES / "trust"))
    assert package.trusted
    assert package.vouched.startswith("signed by demo-part (")


def test_no_private_key_is_in_the_repository():
    root = ENGINES.parent
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    held = b"-----BEGIN " + b"PRIVATE KEY"
    found = [name for name in listed.stdout.decode().split("\0") if name and held in _content(root / name)]
    assert not found


def _content(path):
    return path.read_bytes() if path.is_file() else b""


def test_signed_package_says_whose_it_is(folder, trust):
    package = load_package(folder, trust=trust)
    assert package.trusted
    assert package.signature is not None
    assert package.vouched == f"signed by quality ({package.signature.fingerprint[:16]})"


def test_unsigned_package_is_refused_with_what_to_do(folder, trust):
    (folder / SIGNATURE).unlink()
    _refused(folder, trust, r"is not signed; keys in .*trust: quality.*edgeqc engine trust.*engines\.unsigned: allow")


def test_package_of_an_unknown_key_is_refused(folder):
    _refused(
        folder, Trust(folder=Path("/nowhere")), r"signed by an unknown key \([0-9a-f]{16}\); keys in /nowhere: none"
    )


@pytest.mark.parametrize("signed", [True, False])
def test_untrusted_package_runs_only_where_that_is_said_and_is_not_called_trusted(folder, signed):
    if not signed:
        (folder / SIGNATURE).unlink()
    package = load_package(folder, trust=Trust(folder=Path("/nowhere"), allow_unsigned=True))
    assert not package.trusted
    assert package.vouched.startswith("is signed by an unknown key" if signed else "is not signed")


@pytest.mark.parametrize("name", ["manifest.yaml", "model.onnx", "calibration.json", "golden.npz"])
@pytest.mark.parametrize("allow", [False, True])
def test_changed_file_is_refused_even_where_unsigned_packages_may_run(folder, trust, name, allow):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    lax = Trust(folder=trust.folder, signers=trust.signers, allow_unsigned=allow)
    _refused(folder, lax, rf"{name}: SHA-256 is [0-9a-f]{{64}}, signed was [0-9a-f]{{64}}")


def _document(folder):
    return json.loads((folder / SIGNATURE).read_text())


def _write(folder, document):
    (folder / SIGNATURE).write_text(document if isinstance(document, str) else json.dumps(document))


def test_signature_over_other_hashes_is_refused(folder, trust):
    """Someone changes a file and puts the new hash into the manifest and into the signature's list."""
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    manifest["golden_tolerance"] = 0.1
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    document = _document(folder)
    document["files"]["manifest.yaml"] = hashlib.sha256((folder / "manifest.yaml").read_bytes()).hexdigest()
    _write(folder, document)
    _refused(folder, trust, "was changed after it was signed")


def test_someone_else_s_signature_under_a_trusted_key_s_name_is_refused(folder, trust, key):
    other = Ed25519PrivateKey.generate()
    document = json.loads(sign(read_folder(folder), other))
    document["public_key"] = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    _write(folder, document)
    _refused(folder, trust, "was changed after it was signed")


def test_signature_made_for_something_else_is_none_for_a_package(folder, trust, key):
    """The head keeps a signature over the same lines in another program from counting here."""
    document = _document(folder)
    lines = "".join(f"{document['files'][name]}  {name}\n" for name in sorted(document["files"]))
    document["signature"] = base64.b64encode(key.sign(lines.encode())).decode()
    _write(folder, document)
    _refused(folder, trust, "was changed after it was signed")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.pop("signature"), "must have exactly"),
        (lambda d: d.update(extra=1), "must have exactly"),
        (lambda d: d.update(format=2), "format 2, ed25519 is not"),
        (lambda d: d.update(algorithm="none"), "format 1, none is not"),
        (lambda d: d.update(public_key=""), "is no signature"),
        (lambda d: d.update(public_key="AAAA"), "is no signature"),
        (lambda d: d.update(public_key=5), "is no signature"),
        (lambda d: d.update(signature="!!"), "is no signature"),
        (lambda d: d.update(signature=""), "was changed after"),
        (lambda d: d.update(files=[]), "files: must map"),
        (lambda d: d["files"].update({"../model.onnx": "0" * 64}), "files: must map"),
        (lambda d: d["files"].update({"model.onnx": "abc"}), "files: must map"),
        (lambda d: d["files"].update({"new.txt": "0" * 64}), "was changed after"),
        (lambda d: d["files"].pop("model.onnx"), "was changed after"),
    ],
)
def test_signature_that_makes_no_sense_is_refused(folder, trust, change, match):
    document = _document(folder)
    change(document)
    _write(folder, document)
    _refused(folder, trust, match)


@pytest.mark.parametrize("content", ["", "[", "null", "[]", "[" * 100_000, "\x00"])
def test_file_that_is_no_signature_is_refused(folder, trust, content):
    _write(folder, content)
    _refused(folder, trust, "is no signature")


def test_link_in_place_of_the_signature_is_refused(folder, trust, tmp_path):
    (folder / SIGNATURE).rename(tmp_path / "elsewhere.json")
    (folder / SIGNATURE).symlink_to(tmp_path / "elsewhere.json")
    _refused(folder, trust, "signature.json: is a symbolic link")


def test_file_that_the_signature_does_not_cover_is_not_read(folder, trust, key):
    """A variant file is slipped in beside the signed ones, and the manifest that names it is signed."""
    files = read_folder(folder)
    manifest = yaml.safe_load(files["manifest.yaml"])
    sha256 = hashlib.sha256(files["model.onnx"]).hexdigest()
    manifest["variants"] = {"fp16": {"model": sha256, "golden_tolerance": 0.1}}
    files["manifest.yaml"] = yaml.safe_dump(manifest).encode()
    (folder / "manifest.yaml").write_bytes(files["manifest.yaml"])
    (folder / "model.fp16.onnx").write_bytes(files["model.onnx"])
    (folder / SIGNATURE).write_bytes(sign(files, key))
    _refused(folder, trust, "does not cover model.fp16.onnx: it was added after")


def test_trust_is_settled_before_anything_of_the_package_is_parsed(folder):
    (folder / "manifest.yaml").write_bytes(b"!!python/object/apply:os.getcwd []")
    _refused(folder, Trust(folder=Path("/nowhere")), "signed by an unknown key")


def test_signing_again_after_a_new_calibration_counts(folder, trust, key):
    files = read_folder(folder)
    calibration = json.loads(files["calibration.json"]) | {"threshold": 0.9}
    files["calibration.json"] = json.dumps(calibration).encode()
    manifest = yaml.safe_load(files["manifest.yaml"])
    manifest["files"]["calibration"] = hashlib.sha256(files["calibration.json"]).hexdigest()
    files["manifest.yaml"] = yaml.safe_dump(manifest).encode()
    assert replace_folder(folder, files, key=key).threshold == 0.9
    assert load_package(folder, trust=trust).threshold == 0.9


def test_package_that_the_daemon_would_refuse_is_not_signed_and_nothing_changes(folder, key):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    files = read_folder(folder) | {"calibration.json": b"{}"}
    with pytest.raises(PackageError, match=r"part/1/calibration\.json: SHA-256"):
        replace_folder(folder, files, key=key)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["1"], "nothing half-written is left"


def test_key_for_one_package_is_forgotten(tmp_path):
    copy = Path(shutil.copytree(DEMO, tmp_path / "1"))
    sign_once(copy, tmp_path / "trust", name="once")
    assert load_package(copy, trust=read_trust(tmp_path / "trust")).vouched.startswith("signed by once")
    assert [path.name for path in tmp_path.rglob("*.key")] == []
    assert not any(b"PRIVATE" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_keys_are_what_openssl_makes_and_reads(tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    private, public = tmp_path / "site.key", tmp_path / "site.pub"
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run([openssl, "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    assert load_key(private).public_key().public_bytes_raw() == load_public(public)
    made = make_key(tmp_path / "own.key", tmp_path / "own.pub")
    told = subprocess.run(
        [openssl, "pkey", "-in", tmp_path / "own.key", "-pubout"], check=True, capture_output=True, text=True
    )
    assert told.stdout == (tmp_path / "own.pub").read_text()
    assert fingerprint(load_public(tmp_path / "own.pub")) == made


def test_signature_is_checked_by_openssl_too(folder, tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    document = _document(folder)
    lines = [f"{document['files'][name]}  {name}\n" for name in sorted(document["files"])]
    (tmp_path / "signed").write_bytes(b"edgeqc engine package, format 1\n" + "".join(lines).encode())
    (tmp_path / "raw").write_bytes(base64.b64decode(document["signature"]))
    public = bytes.fromhex("302a300506032b6570032100") + base64.b64decode(document["public_key"])  # RFC 8410
    (tmp_path / "key.der").write_bytes(public)
    told = subprocess.run(
        [openssl, "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", tmp_path / "key.der",
         "-rawin", "-in", tmp_path / "signed", "-sigfile", tmp_path / "raw"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr + told.stdout


def test_private_key_is_its_owner_s_only_and_never_overwritten(tmp_path):
    make_key(tmp_path / "k.key", tmp_path / "k.pub")
    assert stat.S_IMODE((tmp_path / "k.key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        make_key(tmp_path / "k.key", tmp_path / "other.pub")
    with pytest.raises(FileExistsError):
        make_key(tmp_path / "other.key", tmp_path / "k.pub")


def test_key_with_a_password_needs_it(tmp_path):
    make_key(tmp_path / "k.key", tmp_path / "k.pub", password=b"secret")
    with pytest.raises(PackageError, match="or the password is wrong"):
        load_key(tmp_path / "k.key", password=b"guess")
    assert load_key(tmp_path / "k.key", password=b"secret").public_key().public_bytes_raw() == load_public(
        tmp_path / "k.pub"
    )


def test_local_key_is_made_once(tmp_path):
    first = local_key(tmp_path / "keys")
    assert local_key(tmp_path / "keys").private_bytes_raw() == first.private_bytes_raw()
    assert load_public(tmp_path / "keys" / "local.pub") == first.public_key().public_bytes_raw()


@pytest.mark.parametrize("content", [b"", b"nothing", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_file_that_is_no_key_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.pub").write_bytes(content)
    with pytest.raises(PackageError, match=r"odd\.pub: is no public key"):
        read_trust(tmp_path)
    with pytest.raises(PackageError, match=r"odd\.pub: is no private key"):
        load_key(tmp_path / "odd.pub")


def test_key_of_another_kind_is_refused(tmp_path):
    pem = (
        X25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "x.pub").write_bytes(pem)
    with pytest.raises(PackageError, match="another kind than Ed25519"):
        load_public(tmp_path / "x.pub")


def test_trust_that_anybody_may_write_is_refused(tmp_path):
    trust = tmp_path / "trust"
    make_key(tmp_path / "k.key", trust / "k.pub")
    assert list(read_trust(trust).signers.values()) == ["k"]
    (trust / "k.pub").chmod(0o666)
    with pytest.raises(PackageError, match=r"k\.pub: anybody may write it"):
        read_trust(trust)
    (trust / "k.pub").chmod(0o644)
    for mode in (0o777, 0o1777):  # sticky: others could not take a key away, and still add theirs
        trust.chmod(mode)
        with pytest.raises(PackageError, match=r"trust: anybody may write it"):
            read_trust(trust)


def test_trusted_key_keeps_its_name_and_another_never_takes_it(tmp_path):
    make_key(tmp_path / "a.key", tmp_path / "site.pub")
    name, told = add_key(tmp_path / "trust", tmp_path / "site.pub")
    assert (name, told) == ("site", fingerprint(load_public(tmp_path / "site.pub")))
    assert add_key(tmp_path / "trust", tmp_path / "site.pub", name="again")[0] == "site"
    (tmp_path / "site.pub").rename(tmp_path / "old.pub")
    make_key(tmp_path / "b.key", tmp_path / "site.pub")
    with pytest.raises(PackageError, match="is there already and another key"):
        add_key(tmp_path / "trust", tmp_path / "site.pub")


def test_missing_trust_folder_trusts_nobody(tmp_path):
    assert read_trust(tmp_path / "none").signers == {}


@pytest.mark.parametrize("name", ["../up", ".hidden", "a/b", "signature.json", "a b", ""])
def test_file_names_that_lead_elsewhere_are_not_signed(key, name):
    with pytest.raises(PackageError, match="is no name for a file"):
        sign({name: b""}, key)


def test_read_signature_does_not_need_the_files(folder):
    found = read_signature(folder / SIGNATURE, (folder / SIGNATURE).read_bytes())
    assert set(found.files) == {"manifest.yaml", "model.onnx", "calibration.json", "golden.npz"}
