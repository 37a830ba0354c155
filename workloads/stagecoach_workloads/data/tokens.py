"""Text to token ids: any Hugging Face `tokenizer.json`, a small BPE trained on the made corpus, and token counts kept beside an index."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer

from stagecoach.contract.dataset import Corpus, PartEntry
from stagecoach.contract.records import Stored, canonical_json, decode, encode
from stagecoach.errors import ContractError, DataError
from stagecoach.storage import Store
from stagecoach.storage.errors import NotFound, ObjectCorrupt
from stagecoach_workloads.data import parquet, templates
from stagecoach_workloads.data.dataset import Dataset, open_dataset_at
from stagecoach_workloads.data.index import list_column
from stagecoach_workloads.data.samples import Sample

IMAGE_TOKEN = "<image>"  # noqa: S105 - no secret
MADE_VOCABULARY = 512
MADE_ADDED = (IMAGE_TOKEN, "<image placeholder>", "<|endofchunk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|reserved|>")
_STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>", "<|im_start|>")
_ENDS = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>")
_PADS = ("<pad>", "<|pad|>", "[PAD]", "<unk>", *_ENDS)


@dataclass(frozen=True)
class Rendered:
    """One document: runs of token ids with images between them; `len(runs) == len(images) + 1`. `answers` are flags per token."""

    runs: list[list[int]]
    answers: list[list[bool]]
    images: list[int]


class TextTokenizer:
    """A `tokenizer.json` and the few special tokens we need of it. Picklable."""

    def __init__(self, body: bytes, *, source: str = "tokenizer.json") -> None:
        """Raises DataError when the file cannot be read, or lacks a start or an end token."""
        self.body, self.source = body, source
        self.fingerprint = hashlib.sha256(body).hexdigest()
        _ = self.inner  # fails here rather than in a worker

    def __reduce__(self) -> tuple[type["TextTokenizer"], tuple[bytes]]:
        return TextTokenizer, (self.body,)

    @cached_property
    def inner(self) -> Tokenizer:
        try:
            inner = Tokenizer.from_str(self.body.decode("utf-8"))
        except Exception as error:  # the Rust library raises bare Exception
            raise DataError(f"{self.source}: not a tokenizer.json that can be read: {str(error)[:200]}") from None
        inner.no_truncation()
        inner.no_padding()
        if inner.token_to_id(IMAGE_TOKEN) is None:
            inner.add_special_tokens([IMAGE_TOKEN])  # the vocabulary grows by it: model.decoder.added_tokens
        return inner

    @property
    def size(self) -> int:
        """Ids are below this."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    @cached_property
    def image_id(self) -> int:
        return self._first((IMAGE_TOKEN,), "image")

    @cached_property
    def bos_id(self) -> int:
        return self._first(_STARTS, "start")

    @cached_property
    def eos_id(self) -> int:
        return self._first(_ENDS, "end")

    @cached_property
    def pad_id(self) -> int:
        return self._first(_PADS, "padding")

    def _first(self, names: Sequence[str], what: str) -> int:
        for name in names:
            number = self.inner.token_to_id(name)
            if number is not None:
                return number
        raise DataError(f"{self.source}: has no {what} token; one of {', '.join(names)} must be in its vocabulary")

    def check_fits(self, vocabulary: int) -> None:
        """Raises DataError when an id could be past the model's embedding."""
        if self.size > vocabulary:
            raise DataError(
                f"{self.source}: has {self.size:,} tokens and the model's vocabulary {vocabulary:,} (decoder.vocab_size + added_tokens); "
                "use the tokenizer that belongs to the model, or grow model.decoder.added_tokens"
            )

    @cached_property
    def _encode_cached(self):  # type: ignore[no-untyped-def]
        return lru_cache(maxsize=65_536)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        if text == templates.BOS:
            return (self.bos_id,)
        head, end, _ = text.partition(templates.EOS)
        ids = self.inner.encode(head, add_special_tokens=False).ids if head else []
        return (*ids, self.eos_id) if end else tuple(ids)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text. The image token in it is text like any other: only images of a sample take image positions."""
        found: tuple[int, ...] = self._encode_cached(text) if len(text) < 64 else self._encode(text)
        if self.image_id in found:
            return tuple(number for number in found if number != self.image_id)
        return found

    def decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=True)

    def render(self, pieces: Sequence[templates.Piece]) -> Rendered:
        """Token ids of a document's pieces."""
        runs: list[list[int]] = [[]]
        answers: list[list[bool]] = [[]]
        images: list[int] = []
        for piece in pieces:
            if piece.image is not None:
                images.append(piece.image)
                runs.append([])
                answers.append([])
                continue
            ids = self.encode(piece.text)
            runs[-1].extend(ids)
            answers[-1].extend([piece.answer] * len(ids))
        return Rendered(runs, answers, images)

    def documents(self, sample: Sample, template: str) -> list[Rendered]:
        """The sample's documents: one, or two for a preference pair."""
        return [self.render(pieces) for pieces in templates.documents(sample, template)]


# --- the made corpus' own tokenizer ------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], *, vocabulary: int = MADE_VOCABULARY) -> bytes:
    """A byte-level BPE; digits stand alone, so that coordinates and sums are spelled. Equal texts give equal bytes."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = PreTokenizers([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    missing = vocabulary - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|unused{number}|>" for number in range(missing)])
    tokenizer.add_special_tokens(list(MADE_ADDED))
    return tokenizer.to_str(pretty=True).encode()


def train_corpus_tokenizer(store: Store, corpus: Corpus) -> None:
    """Trains on the corpus' training texts and publishes `tokenizer.json`; one that stands there is kept."""
    if store.exists(corpus.tokenizer):
        return
    texts: list[str] = []
    for folder in corpus.datasets.values():
        dataset = open_dataset_at(store.child(folder))
        for sample in dataset.read_many(range(min(400, len(dataset)))):
            texts += [part for turn in sample.turns for part in turn.content if isinstance(part, str)]
    texts += [f"{start}{text}" for text in ("USER:", "ASSISTANT:", "\n", "(0,1,1)") for start in ("", " ")] * 50
    store.publish(corpus.tokenizer, train_tokenizer(texts))


def count_corpus_tokens(store: Store, corpus: Corpus) -> None:
    """Counts tokens of every dataset under every template."""
    tokenizer = TextTokenizer(store.read(corpus.tokenizer), source=store.uri_of(corpus.tokenizer))
    for folders in (corpus.datasets, corpus.validation, corpus.test):
        for folder in folders.values():
            dataset = open_dataset_at(store.child(folder))
            count_tokens(dataset, tokenizer, templates.TEMPLATES)


# --- token counts, kept beside the index -------------------------------------------------------------------------------------

_SCHEMA = pa.schema([("runs", pa.list_(pa.int32()))])


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCounts(Stored):
    """`tokens/{id}.json`: lengths of every sample's text runs under one tokenizer and template."""

    FORMAT = "stagecoach.tokens"

    fingerprint: str  # of the dataset
    tokenizer: str  # SHA-256 of tokenizer.json
    template: str
    template_version: int
    tokens: int
    parts: tuple[PartEntry, ...]


def counts_id(tokenizer: TextTokenizer, template: str) -> str:
    return hashlib.sha256(canonical_json([tokenizer.fingerprint, template, templates.VERSION])).hexdigest()[:16]


def count_tokens(
    dataset: Dataset,
    tokenizer: TextTokenizer,
    wanted: Sequence[str],
    *,
    batch: int = 512,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Counts what is not counted yet. Every sample is read once for all templates; one part of the index is held in memory at a time.
    `on_progress` gets the samples read so far, and all. Raises ContentError for a damaged sample."""
    missing = [template for template in wanted if not dataset.store.exists(f"tokens/{counts_id(tokenizer, template)}.json")]
    if not missing:
        return
    entries: dict[str, list[PartEntry]] = {template: [] for template in missing}
    totals, first = dict.fromkeys(missing, 0), 0
    for number, part in enumerate(dataset.manifest.parts):
        runs: dict[str, list[list[int]]] = {template: [] for template in missing}
        for begin in range(first, first + part.rows, batch):
            end = min(begin + batch, first + part.rows)
            for sample in dataset.read_many(range(begin, end)):
                for template in missing:
                    runs[template].append([len(run) for doc in tokenizer.documents(sample, template) for run in doc.runs])
            if on_progress:
                on_progress(end, len(dataset))
        for template, lengths in runs.items():
            key = f"tokens/{counts_id(tokenizer, template)}/part-{number:05d}.parquet"
            entries[template].append(_publish_part(dataset, key, lengths))
            totals[template] += sum(map(sum, lengths))
        first += part.rows
    for template in missing:
        _publish_counts(dataset, tokenizer, template, entries[template], totals[template])


def _publish_part(dataset: Dataset, key: str, lengths: list[list[int]]) -> PartEntry:
    body = parquet.to_bytes(pa.table({"runs": lengths}, schema=_SCHEMA))
    dataset.store.publish(key, body)
    return PartEntry(key=key, size=len(body), digest=hashlib.sha256(body).hexdigest(), rows=len(lengths))


def _publish_counts(dataset: Dataset, tokenizer: TextTokenizer, template: str, parts: Sequence[PartEntry], tokens: int) -> None:
    """Written last: from here on the dataset is counted."""
    counts = TokenCounts(
        fingerprint=dataset.manifest.fingerprint,
        tokenizer=tokenizer.fingerprint,
        template=template,
        template_version=templates.VERSION,
        tokens=tokens,
        parts=tuple(parts),
    )
    dataset.store.publish(f"tokens/{counts_id(tokenizer, template)}.json", encode(counts))


@dataclass(frozen=True)
class RunLengths:
    """Text run lengths of all samples: sample i's are `runs[start[i] : start[i + 1]]`."""

    start: np.ndarray
    runs: np.ndarray


def read_counts(dataset: Dataset, tokenizer: TextTokenizer, template: str) -> RunLengths:
    """Raises DataError that says what to run when they were never counted, or belong to another dataset, or are damaged."""
    key = f"tokens/{counts_id(tokenizer, template)}.json"
    uri = dataset.store.uri_of(key)
    do = f"run `stagecoach data index {dataset.uri} --tokenizer TOKENIZER_URI --template {template}`"
    try:
        counts = decode(TokenCounts, dataset.store.read(key), uri=uri)
    except NotFound:
        raise DataError(f"{dataset.uri}: its tokens were not counted for this tokenizer and template `{template}`; {do}") from None
    except (ObjectCorrupt, ContractError) as error:
        raise DataError(f"{error}; delete it and {do}") from None
    if counts.fingerprint != dataset.manifest.fingerprint:
        raise DataError(f"{uri}: counted for another version of the dataset; delete it and {do}")
    tables = []
    for part in counts.parts:
        try:
            body = dataset.store.read(part.key)
        except (NotFound, ObjectCorrupt) as error:
            raise DataError(f"token counts {part.key}: {error}; delete {uri} and {do}") from None
        if hashlib.sha256(body).hexdigest() != part.digest:
            raise DataError(f"{dataset.store.uri_of(part.key)}: does not have the digest in {key}: damaged; delete {uri} and {do}")
        tables.append(parquet.from_bytes(body))
    start, runs = list_column(pa.concat_tables(tables).combine_chunks(), "runs")
    if len(start) != len(dataset) + 1:
        raise DataError(f"{uri}: counts {len(start) - 1:,} samples and the dataset has {len(dataset):,}; delete it and {do}")
    return RunLengths(start, runs)
