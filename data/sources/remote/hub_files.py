"""Files of a commit on the Hugging Face hub as input files."""

from dataclasses import dataclass

from data.base.errors import DataError, ReadError
from data.hub.client import REQUEST_SECONDS
from data.sources.remote.remote_file import RemoteFile
from data.stores.failures import FetchError, retried


@dataclass(frozen=True)
class HubFile(RemoteFile):
    """A file of a commit, whose content never changes."""

    dataset: str
    sha: str
    path: str
    n_bytes: int

    @classmethod
    def of(cls, dataset: str, sha: str, path: str, n_bytes: int) -> "HubFile":
        """`n_bytes` is 0 if the size is unknown; the hub is then asked for it."""
        from huggingface_hub import get_hf_file_metadata

        if n_bytes == 0:
            try:
                n_bytes = retried(lambda: get_hf_file_metadata(_url(dataset, sha, path))).size or 0
            except FetchError as error:
                raise DataError(
                    f"{dataset}/{path} cannot be read: {error}: start again when the hub responds"
                ) from None
        return cls(dataset, sha, path, n_bytes)

    @property
    def url(self) -> str:
        return f"{self.dataset}/{self.path}"

    @property
    def digest(self) -> str:
        return f"{self.sha}/{self.path}"

    def fetch(self, start: int, stop: int) -> bytes:
        try:
            return retried(lambda: self._request(start, stop))
        except FetchError as error:
            raise ReadError(f"{self.url} cannot be read: {error}: start again when the hub responds") from None

    def _request(self, start: int, stop: int) -> bytes:
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        # Without compression, a range is a range of the file's bytes.
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        answer = get_session().get(_url(self.dataset, self.sha, self.path), headers=headers, timeout=REQUEST_SECONDS)
        hf_raise_for_status(answer)
        if answer.status_code != 206 or len(answer.content) != stop - start:
            raise ConnectionError(
                f"the hub sent {len(answer.content):,} bytes (status {answer.status_code}) instead of {stop - start:,}"
            )
        return answer.content


def _url(dataset: str, sha: str, path: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(dataset, path, repo_type="dataset", revision=sha)
