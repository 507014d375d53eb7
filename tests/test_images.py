"""Folders of pictures: every readable picture once, in order, with its own class; everything else by name."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from gradspec.images import PictureError, as_rgb, load_images
from gradspec.images.labels import ClassIndex
from gradspec.images.preprocessing import plain

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "images").is_dir(), reason="no ../shared with networks and pictures")
WNIDS = ["n01440764", "n01443537", "n02113186", "n02963159", "n02012849", "n03126707"]
CLASSES = ["tench, Tinca tinca", "goldfish", "Cardigan, Cardigan Welsh corgi", "cardigan", "crane", "crane"]


class Model(nn.Module):
    """What load_images looks at in a model; the preprocess keeps the level of an even picture readable."""

    def __init__(self, classes=CLASSES, wnids=WNIDS):
        super().__init__()
        self.classes, self.wnids, self.mean, self.std = classes, wnids, (0.0,) * 3, (1.0,) * 3
        self.preprocess = plain().at(8)


def save(path, level=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path)


def levels(batches):
    """The grey level of each picture, in the order it came: tells which file it is."""
    return [round(float(image.mean()) * 255) for images, *_ in batches for image in images]


def passed(pictures):
    """Ids, labels and levels of one pass."""
    batches = list(pictures)
    ids = [name for *_, names in batches for name in names]
    labels = None if batches[0][1] is None else [int(label) for _, some, _ in batches for label in some]
    return ids, labels, levels(batches)


def quietly(pictures):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return passed(pictures)


@pytest.fixture
def flat(tmp_path):
    for level in range(10):
        save(tmp_path / f"{level}.png", level)
    return tmp_path


# ---- which pictures, in which order ----------------------------------------------------------------------------------


def test_a_flat_folder_has_no_labels_and_comes_sorted(tmp_path):
    for name, level in {"b.png": 1, "a.JPG": 0, "c.webp": 2}.items():
        save(tmp_path / name, level)
    save(tmp_path / ".hidden.png")
    tmp_path.joinpath("notes.txt").write_text("no picture")
    pictures = load_images(tmp_path, batch_size=2)
    batches = list(pictures)
    assert [names for *_, names in batches] == [["a.JPG", "b.png"], ["c.webp"]]
    assert [labels for _, labels, _ in batches] == [None, None] and pictures.labels is None
    assert [tuple(images.shape) for images, *_ in batches] == [(2, 3, 224, 224), (1, 3, 224, 224)]
    assert levels(batches) == [0, 1, 2] and len(pictures) == 3


def test_every_pass_is_the_same_also_after_one_that_was_left_early(flat):
    pictures = load_images(flat, batch_size=3)
    first = passed(pictures)
    next(iter(pictures))
    assert passed(pictures) == first == ([f"{i}.png" for i in range(10)], None, list(range(10)))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_batches_only_cut_the_sequence(flat, batch_size):
    pictures = load_images(flat, batch_size=batch_size)
    sizes = [len(names) for *_, names in pictures]
    assert sizes == [batch_size] * (10 // batch_size) + [10 % batch_size] * bool(10 % batch_size)
    assert passed(pictures)[2] == list(range(10))


@given(limit=st.integers(1, 12), seed=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_limit_is_a_seeded_subset_in_order_and_smaller_limits_are_part_of_larger_ones(tmp_path_factory, limit, seed):
    folder = tmp_path_factory.getbasetemp() / "ten"
    if not folder.exists():
        for level in range(10):
            save(folder / f"{level}.png", level)
    ids = load_images(folder, limit=limit, seed=seed).ids
    assert len(ids) == min(limit, 10) and list(ids) == sorted(set(ids))
    assert ids == load_images(folder, limit=limit, seed=seed).ids
    assert set(ids) <= set(load_images(folder, limit=limit + 1, seed=seed).ids)


def test_seeds_draw_different_subsets_of_the_whole_folder(flat):
    drawn = {load_images(flat, limit=3, seed=seed).ids for seed in range(20)}
    assert len(drawn) > 10 and {name for ids in drawn for name in ids} == {f"{i}.png" for i in range(10)}


def test_a_limited_folder_keeps_labels_with_their_pictures(flat):
    rows = [f"{i}.png,{9 - i}" for i in range(10)]
    (flat / "labels.csv").write_text("\n".join(["file,index", *rows]))
    ids, labels, seen = passed(load_images(flat, limit=4, seed=1, size=8))
    assert labels == [9 - level for level in seen] and ids == [f"{level}.png" for level in seen]


def test_a_subset_by_position(flat):
    pictures = load_images(flat, batch_size=2).subset(range(2, 5))
    assert passed(pictures) == (["2.png", "3.png", "4.png"], None, [2, 3, 4]) and len(pictures) == 3


@pytest.mark.parametrize("option", [{"limit": 0}, {"limit": -1}, {"batch_size": 0}, {"size": 0}])
def test_numbers_below_one_are_refused(flat, option):
    with pytest.raises(PictureError, match=f"{next(iter(option))} of at least 1"):
        load_images(flat, **option)


def test_no_folder_no_pictures(tmp_path):
    with pytest.raises(PictureError, match="is not there: expected a folder"):
        load_images(tmp_path / "nothing")
    save(tmp_path / "a.png")
    with pytest.raises(PictureError, match="is a file: expected a folder"):
        load_images(tmp_path / "a.png")
    (tmp_path / "empty/below").mkdir(parents=True)
    with pytest.raises(PictureError, match=r"holds no pictures \(\.jpg"):
        load_images(tmp_path / "empty")


# ---- classes from sub-folders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("n01443537", 1),
        ("n01440764-tench", 0),
        ("0003_n02963159_x", 3),
        ("tench, Tinca tinca", 0),
        ("tinca_tinca", 0),
        ("Tench", 0),
        ("GOLD-FISH", None),
        ("GoldFish", 1),
        ("cardigan", 3),
        ("Cardigan", 2),
        ("cardigan-welsh-corgi", 2),
        ("shark", None),
        ("n99999999", None),
        ("1", None),
    ],
)
def test_a_class_is_found_by_wnid_or_name(name, index):
    assert ClassIndex(CLASSES, WNIDS).find(name) == index


def test_a_name_of_two_classes_is_refused_not_guessed():
    for name in ("crane", "CARDIGAN"):
        with pytest.raises(PictureError, match=f"{name!r} names the model's classes"):
            ClassIndex(CLASSES, WNIDS).find(name)


def test_the_models_own_names_come_before_synonyms():
    index = ClassIndex(["crane bird", "crane"], None, ["crane, heron", "derrick"])
    assert (index.find("Crane"), index.find("Crane_Bird"), index.find("heron"), index.find("derrick")) == (1, 0, 0, 1)


def test_sub_folders_become_classes_by_wnid_and_name(tmp_path):
    save(tmp_path / "n01443537/x.jpg", 1)
    save(tmp_path / "Tinca_tinca/deep/y.png", 2)
    save(tmp_path / "n01440764/z.png", 3)
    save(tmp_path / ".thumbnails/t.png", 4)
    (tmp_path / "empty").mkdir()
    ids, labels, seen = passed(load_images(tmp_path, Model()))
    assert ids == ["Tinca_tinca/deep/y.png", "n01440764/z.png", "n01443537/x.jpg"]
    assert labels == [0, 0, 1] and seen == [2, 3, 1]


def test_synonyms_come_from_wordnet_where_the_model_has_wnids(tmp_path):
    save(tmp_path / "Carassius auratus/a.png")
    assert passed(load_images(tmp_path, Model(classes=["t", "g"], wnids=WNIDS[:2])))[1] == [1]


def test_sub_folders_that_are_no_classes_are_refused_never_numbered(tmp_path):
    for name in ("n01443537", "cats", "dogs", "0"):
        save(tmp_path / name / "a.png")
    with pytest.raises(PictureError, match=r"3 of 4 sub-folders .* none of the model's 6 classes \(0, cats, dogs\)"):
        load_images(tmp_path, Model())


@pytest.mark.parametrize("model", [None, Model(None, None)])
def test_sub_folders_without_known_classes_are_refused(tmp_path, model):
    save(tmp_path / "n01443537/a.png")
    with pytest.raises(PictureError, match="no class names are known"):
        load_images(tmp_path, model)


def test_the_folder_above_the_splits_is_recognised(tmp_path):
    save(tmp_path / "train/n01443537/a.png")
    save(tmp_path / "val/n01443537/a.png")
    with pytest.raises(PictureError, match=f"did you mean {tmp_path / 'train'}"):
        load_images(tmp_path, Model())


def test_pictures_beside_sub_folders_are_ambiguous(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "n01443537/a.png")
    with pytest.raises(PictureError, match=r"both pictures and sub-folders .*n01443537"):
        load_images(tmp_path, Model())


def test_a_link_back_up_does_not_loop(tmp_path):
    save(tmp_path / "n01443537/a.png")
    os.symlink(tmp_path / "n01443537", tmp_path / "n01443537/again")
    assert load_images(tmp_path, Model()).ids == ("n01443537/a.png",)


# ---- classes from labels.csv -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "row", "label"),
    [
        ("file,index", "{},3", 3),
        ("index,file", "3,{}", 3),
        ("File, Index ", "{}, 3 ", 3),
        ("filename,label", "{},2", 2),
        ("file,label", "{},goldfish", 1),
        ("file,class", "{},Tinca_tinca", 0),
        ("file,wnid", "{},n02963159", 3),
        ("file,wnid,label", "{},n02963159,something else", 3),
        ("file,index,wnid", "{},3,n02963159", 3),
        ("file,index,wnid", "{},,n02963159", 3),
        ("﻿file,index", "{},3", 3),
    ],
)
def test_labels_csv_by_any_of_its_columns(tmp_path, header, row, label):
    save(tmp_path / "sub/b.png", 7)
    (tmp_path / "labels.csv").write_text(f"{header}\n{row.format('sub/b.png')}\n", encoding="utf-8")
    assert passed(load_images(tmp_path, Model())) == (["sub/b.png"], [label], [7])


def test_rows_keep_their_order_and_unlisted_pictures_stay_out(flat):
    (flat / "labels.csv").write_text("file,index\n7.png,0\n./2.png,1\n7.png,0\n")
    assert passed(load_images(flat)) == (["7.png", "2.png"], [0, 1], [7, 2])


def test_rows_without_a_picture_are_skipped_by_name(flat):
    (flat / "labels.csv").write_text("file,index\n1.png,4\nlost.png,5\n")
    with pytest.warns(UserWarning, match=r"1 picture\(s\) \(lost\.png: not there"):
        pictures = load_images(flat)
    assert pictures.skipped == {"lost.png": "not there, but in labels.csv"} and len(pictures) == 1
    assert passed(pictures) == (["1.png"], [4], [1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns none: expected file and one of index"),
        ("picture,index\n1.png,0", "has the columns picture, index"),
        ("file,size\n1.png,0", "has the columns file, size"),
        ("file,index\n", "lists no pictures: it has no rows"),
        ("file,index\nx.png,0", r"none of its 1 files is there \(x\.png\)"),
        ("file,index\n1.png,0\n2.png,-1", "row 3, has the class index '-1': expected 0 to 5"),
        ("file,index\n1.png,6", "row 2, has the class index '6': expected 0 to 5"),
        ("file,index\n1.png,two", "has the class index 'two'"),
        ("file,index\n1.png,", "has the class '': none of the model's 6 classes"),
        ("file,label\n1.png,shark", "row 2, has the class 'shark': none of the model's 6 classes"),
        ("file,index,wnid\n1.png,1,n01440764", "says index 1 is n01440764, the model that it is n01443537"),
        ("file,index\n1.png,1\n1.png,2", "gives 1.png the class 2, an earlier row 1"),
        ("file,index\n../1.png,1", r"names '\.\./1\.png': expected a file inside the folder"),
        ("file,index\n/etc/passwd,1", "names '/etc/passwd': expected a file inside"),
        ("file,index\nlink.png,1", r"names 'link\.png': expected a file inside"),
        ("file,index\n,1", "names '': expected a file inside"),
    ],
)
def test_a_wrong_labels_csv_is_refused_with_the_place(tmp_path, text, message):
    folder = tmp_path / "pictures"
    for name in ("1.png", "2.png"):
        save(folder / name)
    save(tmp_path / "outside.png")
    os.symlink(tmp_path / "outside.png", folder / "link.png")
    (folder / "labels.csv").write_text(text)
    with pytest.raises(PictureError, match=message) as error:
        load_images(folder, Model())
    assert "labels.csv" in str(error.value)


def test_a_labels_csv_that_is_no_text_is_refused(flat):
    (flat / "labels.csv").write_bytes(b"file,index\n\xff\xfe\x00,0")
    with pytest.raises(PictureError, match="not a CSV file in UTF-8"):
        load_images(flat)


def test_names_without_a_model_are_refused(flat):
    (flat / "labels.csv").write_text("file,wnid\n1.png,n01440764\n")
    with pytest.raises(PictureError, match="unknown without a model's classes"):
        load_images(flat)


# ---- broken pictures -------------------------------------------------------------------------------------------------


def jpeg(size):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 30, (size[1], size[0], 3)) + 128
    Image.fromarray(noise.astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_broken_pictures_are_skipped_by_name_and_counted_once(flat):
    (flat / "3.png").write_bytes(b"")
    (flat / "4.png").write_text("no picture at all")
    (flat / "a.jpg").write_bytes(jpeg((320, 240))[:-400])
    (flat / "b.png").mkdir()
    pictures = load_images(flat, batch_size=4)
    with pytest.warns(
        UserWarning, match=r"3 picture\(s\) \(3\.png: not a picture; 4\.png: not a picture; a\.jpg"
    ) as caught:
        batches = list(pictures)
    assert len(caught) == 1
    assert [len(names) for *_, names in batches] == [4, 4] and levels(batches) == [0, 1, 2, 5, 6, 7, 8, 9]
    assert list(pictures.skipped) == ["3.png", "4.png", "a.jpg"] and "truncated" in pictures.skipped["a.jpg"]
    assert len(pictures) == 8
    save(flat / "3.png", 3)  # repaired: the next pass is the same all the same, without another warning
    assert passed(pictures)[2] == levels(batches)


def test_labels_stay_with_their_pictures_around_a_broken_one(flat):
    (flat / "1.png").write_bytes(b"broken")
    (flat / "labels.csv").write_text("file,index\n" + "\n".join(f"{i}.png,{10 + i}" for i in range(10)))
    assert quietly(load_images(flat, batch_size=3))[1] == [10, 12, 13, 14, 15, 16, 17, 18, 19]


def test_only_broken_pictures_are_an_error(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(PictureError, match=r"No picture in .* can be read; skipped: 2 picture.*a\.png: not a picture"):
        load_images(tmp_path)


@pytest.mark.parametrize("pixels", [101 * 100, 201 * 100])  # Pillow warns of the first and refuses the second
def test_a_decompression_bomb_is_refused_by_name(tmp_path, monkeypatch, pixels):
    save(tmp_path / "bomb.png", size=(pixels // 100, 100))
    save(tmp_path / "fine.png", 9, size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    pictures = load_images(tmp_path, size=50)
    assert quietly(pictures) == (["fine.png"], None, [9])
    assert pictures.skipped == {"bomb.png": "refused: more than 10000 pixels, a decompression bomb"}


def test_a_strip_that_resizing_would_blow_up_is_refused(tmp_path):
    save(tmp_path / "strip.png", size=(20000, 1))
    save(tmp_path / "wide.png", 4, size=(300, 3))
    pictures = load_images(tmp_path)
    assert quietly(pictures) == (["wide.png"], None, [4])
    assert pictures.skipped == {"strip.png": "refused: a strip of 20000 x 1 pixels"}


def test_postscript_in_disguise_is_not_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")  # Pillow would hand it to Ghostscript
    with pytest.raises(PictureError, match="not a picture"):
        load_images(tmp_path)


def test_a_failing_preprocess_is_no_broken_picture(flat):
    def wrong(picture):
        raise RuntimeError("out of luck")

    model = Model()
    model.preprocess = wrong
    with pytest.raises(PictureError, match=r"preprocessing fails at 0\.png \(RuntimeError: out of luck\)"):
        load_images(flat, model)
    model.preprocess = lambda picture: torch.zeros(3)
    with pytest.raises(PictureError, match=r"makes \(3,\) of 0\.png"):
        load_images(flat, model)


def test_pictures_of_several_sizes_are_refused(tmp_path):
    save(tmp_path / "a.png", size=(8, 9))
    save(tmp_path / "b.png", size=(9, 8))
    model = Model()
    model.preprocess = lambda picture: torch.zeros(3, picture.height, picture.width)
    with pytest.raises(PictureError, match=r"makes \(3, 9, 8\) of a\.png and \(3, 8, 9\) of b\.png"):
        list(load_images(tmp_path, model))


# ---- colours and sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "name", "colour", "expected"),
    [
        ("L", "a.png", 51, (51, 51, 51)),
        ("LA", "a.png", (51, 9), (51, 51, 51)),
        ("1", "a.png", 1, (255, 255, 255)),
        ("RGBA", "a.png", (10, 20, 30, 0), (10, 20, 30)),
        ("CMYK", "a.tif", (255, 0, 0, 0), (0, 255, 255)),
        ("I;16", "a.png", 51 * 257, (51, 51, 51)),
        ("I", "a.tif", 40 * 257, (40, 40, 40)),
        ("I", "a.tif", 40, (40, 40, 40)),
        ("F", "a.tif", 0.2, (51, 51, 51)),
        ("F", "a.tif", 51.0, (51, 51, 51)),
    ],
)
def test_every_mode_becomes_eight_bit_rgb(tmp_path, mode, name, colour, expected):
    Image.new(mode, (5, 4), colour).save(tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert picture.mode == mode
        rgb = as_rgb(picture)
    assert (rgb.mode, rgb.size, rgb.getpixel((2, 2))) == ("RGB", (5, 4), expected)
    [(images, _, _)] = load_images(tmp_path, size=4)
    torch.testing.assert_close(images[0, :, 1, 1], torch.tensor(expected) / 255)


def test_palettes_with_transparency_keep_their_colours(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.save(tmp_path / "a.png", transparency=b"\x00\x80")
    [(images, _, _)] = load_images(tmp_path, size=4)
    torch.testing.assert_close(images[0, :, 0, 0], torch.tensor([200, 100, 50]) / 255)


def test_floating_point_pixels_of_unknown_scale_are_skipped(tmp_path):
    Image.new("F", (4, 4), 1000.0).save(tmp_path / "a.tif")
    with pytest.raises(PictureError, match="floating-point pixels from 1000 to 1000"):
        load_images(tmp_path)


@pytest.mark.parametrize(("orientation", "corner"), [(1, "top left"), (3, "bottom right"), (6, "top right")])
def test_pictures_are_turned_upright(tmp_path, orientation, corner):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    rgb = np.asarray(as_rgb(Image.open(tmp_path / "a.jpg")))
    assert rgb.shape == ((64, 48, 3) if orientation == 6 else (48, 64, 3))
    found = {"top left": rgb[4, 4], "top right": rgb[4, -4], "bottom left": rgb[-4, 4], "bottom right": rgb[-4, -4]}
    assert [name for name, value in found.items() if value[0] > 128] == [corner]


def test_moving_pictures_and_multi_pictures_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), (level,) * 3) for level in (40, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert passed(load_images(tmp_path))[2] == pytest.approx([40, 40], abs=1)


@pytest.mark.parametrize(("width", "height", "size"), [(320, 256, 224), (257, 301, 224), (90, 41, 31), (33, 33, 48)])
def test_without_a_model_pixels_are_resized_and_cropped_in_0_to_1(tmp_path, width, height, size):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    short = size * 8 // 7
    scaled = (short, int(short * height / width)) if width < height else (int(short * width / height), short)
    resized = np.asarray(Image.fromarray(pixels).resize(scaled, Image.Resampling.BILINEAR))
    top, left = round((scaled[1] - size) / 2), round((scaled[0] - size) / 2)
    expected = resized[top : top + size, left : left + size].transpose(2, 0, 1) / 255
    [(images, _, _)] = load_images(tmp_path, size=size)
    np.testing.assert_allclose(images[0].numpy(), expected, atol=1e-6)
    if short == height:
        np.testing.assert_array_equal(resized, pixels)  # a shorter side of the right length is not resampled


def test_the_models_preprocessing_is_used_at_its_size_or_the_given_one(flat):
    model = Model()
    assert next(iter(load_images(flat, model)))[0].shape[1:] == (3, 8, 8)
    assert next(iter(load_images(flat, model, size=20)))[0].shape[1:] == (3, 20, 20)
    model.preprocess = lambda picture: torch.zeros(3, 5, 5)  # one of the model's own, without .at
    model.mean, model.std = (0.25,) * 3, (0.5,) * 3
    images = next(iter(load_images(flat, model, size=20)))[0]
    torch.testing.assert_close(images[4], torch.full((3, 20, 20), (4 / 255 - 0.25) / 0.5))
    model.mean = None
    with pytest.raises(PictureError, match="leave out size"):
        load_images(flat, model, size=20)


def test_a_bare_model_is_refused(flat):
    with pytest.raises(PictureError, match="carries no preprocess"):
        load_images(flat, nn.Identity())
    with pytest.raises(TypeError, match=r"expected model as a torch\.nn\.Module, got int"):
        load_images(flat, 8)


# ---- the shared pictures ---------------------------------------------------------------------------------------------


@needs_shared
def test_the_shared_pictures_are_their_files_cropped_with_their_index():
    pictures = load_images(SHARED / "images").subset(range(3))
    [(images, labels, ids)] = list(pictures)
    assert labels.tolist() == [0, 2, 4] and ids[1] == "0002_n01484850_great_white_shark.jpg"
    for image, name in zip(images, ids, strict=True):
        pixels = np.asarray(Image.open(SHARED / "images" / name).convert("RGB"))
        assert min(pixels.shape[:2]) == 256
        top, left = (round((side - 224) / 2) for side in pixels.shape[:2])
        cropped = pixels[top : top + 224, left : left + 224].transpose(2, 0, 1)
        np.testing.assert_allclose(image.numpy(), cropped / 255, atol=1e-7)


@needs_shared
def test_index_and_wnid_of_the_shared_labels_agree_with_timms_classes():
    from gradspec.models import load_model

    pictures = load_images(SHARED / "images", load_model("test_resnet", "none"), limit=8)
    assert pictures.labels.tolist() == [int(name[:4]) for name in pictures.ids]
    assert pictures.preprocess(Image.new("RGB", (300, 200))).shape == (3, 160, 160)
