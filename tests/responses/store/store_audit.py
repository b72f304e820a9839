"""What is true of a store's tables at any time."""

import sqlite3


async def audit(target):
    """Require that the totals are the sums of what is there."""
    sums = (
        "SELECT count(*) FILTER (WHERE kind = 0), count(*) FILTER (WHERE kind = 1), coalesce(sum(bytes), 0)"
        " FROM cvllm_records"
    )
    stored = (
        "SELECT coalesce(sum(length(body) + coalesce(length(settings), 0)), 0)"
        " + (SELECT coalesce(sum(length(body)), 0) FROM cvllm_items)"
        " + (SELECT coalesce(sum(length(body)), 0) FROM cvllm_events) FROM cvllm_records"
    )
    totals = "SELECT responses, conversations, bytes FROM cvllm_totals"
    if target.startswith("postgresql:"):
        import asyncpg

        connection = await asyncpg.connect(target)
        expected, total, (size,) = [tuple(await connection.fetchrow(sql)) for sql in (sums, totals, stored)]
        await connection.close()
    else:
        with sqlite3.connect(target) as connection:
            expected, total, (size,) = (connection.execute(sql).fetchone() for sql in (sums, totals, stored))
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert not connection.execute("PRAGMA foreign_key_check").fetchall()
        connection.close()
    assert total == tuple(map(int, expected))
    assert total[2] == size
