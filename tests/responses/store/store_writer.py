"""A process that writes to a store until it is killed: python store_writer.py TARGET NAME [STALL].

Says what it has done. STALL: for how many seconds everything stands still after the first response is created.
"""

import asyncio
import itertools
import sys
import time

from cvllm_jax.responses.store import ResponseStore


async def main(target, name, stall=0):
    store = await ResponseStore.open(target)
    await store.conversations.create(f"{name}_c")
    for number in itertools.count():
        id_ = f"{name}_{number}"
        previous = f"{name}_{number - 1}" if number else None
        await store.create(
            id_,
            {"id": id_, "status": "in_progress"},
            input_items=[{"id": f"{id_}_{entry}"} for entry in range(3)],
            previous_response_id=previous,
            conversation_id=f"{name}_c",
        )
        print("created", id_, flush=True)
        if number == 0:
            time.sleep(float(stall))  # noqa: ASYNC251
        for batch in range(3):
            await store.append_events(id_, [{"sequence_number": 2 * batch + entry} for entry in range(2)])
            print("appended", id_, 2 * batch + 1, flush=True)
        await store.finish(id_, {"id": id_, "status": "completed"}, [{"id": f"{id_}_out"}])
        print("finished", id_, flush=True)


asyncio.run(main(*sys.argv[1:]))
