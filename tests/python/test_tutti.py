"""The ctypes module against the installed library. What the calls themselves do is tested in C."""

import array
import ctypes
import faulthandler
import json
import os
import subprocess
import sys
import threading
import unittest

import tutti

TIMEOUT_MS = 60_000
WATCHDOG_SECONDS = 240


def on_threads(size, body):
    """Runs body(world, rank) on every rank of a world of threads; raises what the first of them raised."""
    unique_id, raised = tutti.unique_id(), []

    def rank_main(rank):
        try:
            with tutti.World(size, rank, unique_id=unique_id, timeout_ms=TIMEOUT_MS) as world:
                try:
                    body(world, rank)
                except BaseException:
                    world.abort()  # the others wait for this rank
                    raise
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


class Worlds(unittest.TestCase):
    def test_the_library_is_the_one_of_this_module(self):
        major, minor, patch = (int(part) for part in tutti.__version__.split("."))
        self.assertEqual(tutti.version(), 10000 * major + 100 * minor + patch)

    def test_ranks_that_are_threads_meet_through_a_unique_id(self):
        def body(world, rank):
            self.assertEqual((world.rank, world.size), (rank, 3))
            world.barrier()
            world.sync()
            self.assertEqual(world.alive(), [True] * 3)
            self.assertIsNone(world.failure)
            world.check()
            self.assertEqual(world.cpu().size, 3)
            world.sync()  # a rank that has left is not alive any more

        on_threads(3, body)

    def test_processes_meet_through_the_environment(self):
        program = (
            "import array, tutti\n"
            "with tutti.World() as world:\n"
            "    values = array.array('d', [world.rank + 1.0] * 1000)\n"
            "    world.all_reduce(values)\n"
            "    assert list(values) == [6.0] * 1000, values[:3]\n"
        )
        ranks = []
        for rank in range(3):
            environment = dict(os.environ, RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="3",
                               MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", TORCHELASTIC_RUN_ID=f"python-{os.getpid()}")
            ranks.append(subprocess.Popen([sys.executable, "-c", program], env=environment))
        self.assertEqual([rank.wait(WATCHDOG_SECONDS) for rank in ranks], [0, 0, 0])

    def test_the_callers_own_bootstrap_makes_a_world(self):
        barrier, table = threading.Barrier(2, timeout=60), [b"", b""]

        def rank_main(rank, results):
            def all_gather(mine):
                table[rank] = mine
                barrier.wait()
                everyone = list(table)
                barrier.wait()
                return everyone

            with tutti.World(2, rank, all_gather=all_gather) as world:
                values = array.array("i", [rank + 1])
                world.all_reduce(values)
                results[rank] = values[0]

        results = [None, None]
        threads = [threading.Thread(target=rank_main, args=(rank, results)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, [3, 3])

    def test_what_the_bootstrap_raises_comes_back(self):
        def all_gather(mine):
            raise KeyError("no network")

        with self.assertRaises(KeyError):
            tutti.World(2, 0, all_gather=all_gather)

    def test_groups_are_made_by_list_and_by_color(self):
        def body(world, rank):
            with world.split(rank % 2, name="half") as half:
                values = array.array("q", [rank])
                half.all_reduce(values)
                self.assertEqual(values[0], 2 if rank % 2 == 0 else 4)
                self.assertTrue(half.name.startswith("half"))
            group = world.create([3, 0])
            self.assertEqual(group is not None, rank in (0, 3))
            if group is not None:
                self.assertEqual(group.rank, 0 if rank == 3 else 1)
                group.destroy()
                group.destroy()
            self.assertEqual(world.split(-1 if rank == 1 else 0) is None, rank == 1)

        on_threads(4, body)


class Buffers(unittest.TestCase):
    def setUp(self):
        self.world = tutti.World.local(1)[0]
        self.addCleanup(self.world.destroy)

    def test_element_types_come_from_the_buffer(self):
        for code in "bBiIlLqQfd":
            values, result = array.array(code, [1, 2, 3]), array.array(code, [0, 0, 0])
            self.world.all_reduce(values, result)
            self.assertEqual(values, result)
        doubles = (ctypes.c_double * 2)(1.5, 2.5)
        copy = bytearray(16)
        self.world.all_reduce(doubles, memoryview(copy).cast("d"))
        self.assertEqual(bytes(doubles), bytes(copy))

    def test_input_may_be_read_only_and_output_may_not(self):
        result = bytearray(3)
        self.world.broadcast(b"abc", result)
        self.assertEqual(result, b"abc")
        with self.assertRaises(BufferError):
            self.world.all_reduce(b"abc")
        with self.assertRaises(BufferError):
            self.world.all_reduce(memoryview(bytearray(8))[::2])  # not contiguous

    def test_addresses_need_a_dtype_and_a_count(self):
        values = (ctypes.c_float * 4)(1, 2, 3, 4)
        result = (ctypes.c_float * 4)()
        address, target = ctypes.addressof(values), ctypes.c_void_p(ctypes.addressof(result))
        self.world.all_reduce(address, target, dtype="float32", count=4)
        self.assertEqual(list(result), [1, 2, 3, 4])
        with self.assertRaises(ValueError):
            self.world.all_reduce(address, target, count=4)
        with self.assertRaises(ValueError):
            self.world.all_reduce(address, target, dtype=tutti.DType.FLOAT32)

    def test_bytes_may_be_named_as_another_type(self):
        halves = bytearray.fromhex("003c 0040")  # float16 1.0, 2.0
        result = bytearray(4)
        self.world.all_reduce(halves, result, dtype="float16")
        self.assertEqual(halves, result)

    def test_short_and_different_buffers_are_refused(self):
        floats, doubles = array.array("f", [1, 2]), array.array("d", [1, 2])
        with self.assertRaises(ValueError):
            self.world.all_reduce(floats, doubles)
        with self.assertRaises(ValueError):
            self.world.all_reduce(floats, array.array("f", [0]))
        with self.assertRaises(ValueError):
            self.world.all_reduce(floats, count=3)
        with self.assertRaises(TypeError):
            self.world.all_reduce(object())

    def test_tensors_are_taken_by_their_pointer(self):
        memory = (ctypes.c_float * 3)(1, 2, 3)

        class Tensor:  # what PyTorch's has
            dtype = "torch.float32"

            def data_ptr(self):
                return ctypes.addressof(memory)

            def numel(self):
                return 3

            def is_contiguous(self):
                return True

        result = array.array("f", [0, 0, 0])
        self.world.all_reduce(Tensor(), result)
        self.assertEqual(list(result), [1, 2, 3])

    def test_a_buffer_cannot_move_while_a_request_uses_it(self):
        ranks = tutti.World.local(2)
        values = [bytearray(b"\1" * 8), bytearray(b"\2" * 8)]
        first = ranks[0].start(tutti.Collective.ALL_REDUCE, values[0])
        with self.assertRaises(BufferError):
            values[0].append(0)
        second = ranks[1].start(tutti.Collective.ALL_REDUCE, values[1])
        second.wait()
        first.wait()
        self.assertEqual(values[0], b"\3" * 8)
        first.free()
        second.free()
        values[0].append(0)
        for rank in ranks:
            rank.destroy()


class Calls(unittest.TestCase):
    def test_every_collective_does_what_its_name_says(self):
        def body(world, rank):
            size = world.size
            mine = array.array("i", [10 * rank, 10 * rank + 1])
            everyone = array.array("i", [0] * 2 * size)
            world.all_gather(mine, everyone)
            self.assertEqual(list(everyone), [0, 1, 10, 11, 20, 21])
            part = array.array("i", [0, 0])
            world.reduce_scatter(everyone, part, "max")
            self.assertEqual(list(part), [10 * rank, 10 * rank + 1])
            world.broadcast(mine, root=2)
            self.assertEqual(list(mine), [20, 21])
            world.reduce(mine, part, root=1)
            self.assertEqual(list(part), [60, 63] if rank == 1 else [10 * rank, 10 * rank + 1])
            world.gather(array.array("i", [rank, rank]), everyone if rank == 0 else None)
            world.scatter(everyone if rank == 0 else None, part)
            self.assertEqual(list(part), [rank, rank])
            swapped = array.array("i", [0] * size)
            world.all_to_all(array.array("i", [rank * size + to for to in range(size)]), swapped)
            self.assertEqual(list(swapped), [source * size + rank for source in range(size)])
            buffer, scratch = array.array("f", [1, 2]), array.array("f", [0, 0])
            where = world.all_reduce_auto(buffer, scratch)
            self.assertIn(id(where), (id(buffer), id(scratch)))
            self.assertEqual(list(where), [3, 6])
            self.assertNotEqual(world.all_reduce_mode(2, "float32"), tutti.Mode.NONE)

        on_threads(3, body)

    def test_messages_meet_by_peer_and_tag(self):
        def body(world, rank):
            peer = 1 - rank
            mine, theirs = array.array("i", [rank + 1] * 5000), array.array("i", [0] * 6000)
            world.sendrecv(mine, peer, theirs, peer)
            self.assertEqual(list(theirs), [peer + 1] * 5000 + [0] * 1000)
            if rank == 0:
                world.send(mine, peer)
            else:
                world.recv(theirs, peer)
            late = array.array("i", [0] * 3)
            with world.start(tutti.Collective.RECV, recv=late, peer=peer, tag=2) as received:
                world.barrier()
                if rank == 1:
                    world.start(tutti.Collective.SEND, array.array("i", [7, 8]), peer=peer, tag=2).wait()
                else:
                    received.wait()
                    self.assertEqual((received.received(), list(late)), (2, [7, 8, 0]))
                    world.start(tutti.Collective.SEND, array.array("i", [9]), peer=peer, tag=2).wait()
                received.wait()
            # So large that the sender waits and hears of it too.
            with self.assertRaises(tutti.Error) as raised:
                world.send(mine, peer) if rank == 0 else world.recv(late, peer)
            self.assertEqual(raised.exception.status, tutti.Status.MISMATCH)
            world.check()

        on_threads(2, body)

    def test_parts_may_differ_in_size(self):
        def body(world, rank):
            counts = [1, 0, 3]
            gathered = array.array("i", [0] * 4)
            world.all_gather_v(array.array("i", [rank + 1] * counts[rank]), gathered, counts)
            self.assertEqual(list(gathered), [1, 3, 3, 3])
            part = array.array("i", [0] * counts[rank])
            world.reduce_scatter_v(array.array("i", [1, 2, 3, 4]), part, counts)
            self.assertEqual(list(part), [[3], [], [6, 9, 12]][rank])
            sends, receives = [rank] * 3, [0, 1, 2]
            exchanged = array.array("i", [0] * 3)
            world.all_to_all_v(array.array("i", [rank] * 3 * rank), sends, exchanged, receives)
            self.assertEqual(list(exchanged), [1, 2, 2])

        on_threads(3, body)

    def test_one_thread_drives_all_ranks_with_requests_and_batches(self):
        ranks = tutti.World.local(4)
        values = [array.array("f", [rank] * 1000) for rank in range(4)]
        requests = [ranks[rank].start(tutti.Collective.ALL_REDUCE, values[rank]) for rank in range(4)]
        for request in reversed(requests):
            self.assertTrue(request.wait())
            request.free()
        self.assertTrue(all(list(each) == [6.0] * 1000 for each in values))

        with tutti.Batch():
            pairs = [rank.split(number // 2) for number, rank in enumerate(ranks)]
            outer = [rank.create([0, 3]) for rank in ranks]
        self.assertEqual([pair.size for pair in pairs], [2] * 4)
        self.assertEqual([bool(group) for group in outer], [True, False, False, True])
        with tutti.Batch():
            for pair, each in zip(pairs, values):
                pair.all_reduce(each)
        self.assertTrue(all(list(each) == [12.0] * 1000 for each in values))

        with self.assertRaises(RuntimeError):
            with tutti.Batch():
                ranks[0].barrier()
                raise RuntimeError("the caller changed its mind")
        self.assertIsNone(ranks[0].failure)
        for group in pairs + [outer[0], outer[3]] + ranks:
            group.destroy()

    def test_explain_is_a_table_or_json(self):
        def body(world, rank):
            self.assertIn("all_reduce", world.explain(count=1 << 20, dtype="bfloat16"))
            self.assertIsInstance(json.loads(world.explain(json=True)), dict)

        on_threads(2, body)

    def test_a_capture_session_on_cpu_groups_does_nothing(self):
        def body(world, rank):
            with tutti.Capture([world]) as session:
                values = array.array("i", [1])
                world.all_reduce(values)
                session.commit()
            self.assertEqual(values[0], 2)

        on_threads(2, body)


class Failures(unittest.TestCase):
    def test_errors_have_a_status_and_a_sentence(self):
        world = tutti.World.local(1)[0]
        with self.assertRaises(tutti.Error) as raised:
            world.all_reduce(array.array("f", [1]), dtype=55)
        self.assertEqual(raised.exception.status, tutti.Status.INVALID_ARGUMENT)
        self.assertTrue(str(raised.exception))
        world.destroy()
        with self.assertRaises(tutti.Error):
            world.barrier()

    def test_an_aborted_group_says_so(self):
        ranks = tutti.World.local(2)
        request = ranks[0].start(tutti.Collective.BARRIER)
        self.assertFalse(request.test())
        self.assertFalse(request.wait(timeout_ms=5))
        ranks[1].abort()
        with self.assertRaises(tutti.Error) as raised:
            request.wait()
        self.assertEqual(raised.exception.status, tutti.Status.ABORTED)
        failure = ranks[0].failure
        self.assertEqual(failure.status, tutti.Status.ABORTED)
        self.assertTrue(failure.text)
        request.free()
        for rank in ranks:
            rank.destroy()

    def test_logs_reach_the_callback(self):
        lines = []
        tutti.set_log_callback(lambda level, target, message: lines.append((level, target, message)))
        self.addCleanup(tutti.set_log_callback, None)
        for rank in tutti.World.local(2):
            rank.destroy()
        tutti.set_log_callback(None)
        self.assertTrue(lines)
        level, target, message = lines[0]
        self.assertTrue(1 <= level <= 5 and target and message)


class Layouts(unittest.TestCase):
    def supernodes(self):
        ranks = range(16)
        return tutti.Layout(16, tensor=8, pipeline=2, hosts=[rank // 8 for rank in ranks],
                            domains=[rank // 4 % 2 for rank in ranks], lanes=[rank % 4 for rank in ranks])

    def test_a_layout_answers_and_is_drawn(self):
        with self.supernodes() as layout:
            self.assertEqual(layout.groups(tutti.Kind.TP),
                             [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]])
            self.assertEqual(layout.of(tutti.Kind.PP, 12), (4, 1))
            self.assertEqual(layout.reach(tutti.Kind.TP), [(2, 1), (2, 1)])
            self.assertEqual(layout.digest, self.supernodes().digest)
            drawn = json.loads(layout.draw("json"))
            self.assertEqual(drawn["groups"]["pp"][0], {"name": "pp:0", "ranks": [0, 4], "hosts": 1, "domains": 2})
            self.assertEqual(drawn["axes"], ["external_dp", "dp", "pp", "pcp", "tp"])
            self.assertTrue(layout.draw().startswith("layout of 16 ranks"))
            self.assertTrue(layout.draw("svg").startswith("<svg "))

    def test_what_cannot_be_is_refused(self):
        with self.assertRaisesRegex(tutti.Error, "must be the world's size"):
            tutti.Layout(4, tensor=3)
        with self.assertRaisesRegex(ValueError, "order has 2 numbers"):
            tutti.Layout(4, tensor=4, order=[0, 1])
        with self.assertRaisesRegex(tutti.Error, "no axis of its own"):
            tutti.Layout(4, tensor=4, axes=[tutti.Kind.EP] * 5)

    def test_a_layout_makes_groups_that_are_found_by_name(self):
        def body(world, rank):
            with tutti.Layout(4, tensor=2, pipeline=2) as layout:
                groups = layout.create(world, [tutti.Kind.TP, tutti.Kind.PP])
            self.assertEqual(set(groups), {tutti.Kind.TP, tutti.Kind.PP})
            values = array.array("q", [1 << rank])
            groups[tutti.Kind.PP].all_reduce(values)
            self.assertEqual(values[0], 5 if rank % 2 == 0 else 10)
            tp = groups[tutti.Kind.TP]
            self.assertEqual(tutti.find_group(tp.name, tp.rank).handle, tp.handle)
            tp.sync()
            for group in groups.values():
                group.destroy()
            with self.assertRaises(tutti.Error):
                tutti.find_group("tp:9")

        on_threads(4, body)

    def test_one_thread_makes_the_groups_of_all_ranks_in_a_batch(self):
        ranks, layout = tutti.World.local(2), tutti.Layout(2, tensor=2)
        with tutti.Batch():
            made = [layout.create(rank) for rank in ranks]
        values = [array.array("i", [1]), array.array("i", [2])]
        with tutti.Batch():
            for groups, value in zip(made, values):
                groups[tutti.Kind.EP].all_reduce(value)
        self.assertEqual([value[0] for value in values], [3, 3])
        for groups in made:
            for group in groups.values():
                group.destroy()
        for rank in ranks:
            rank.destroy()


class Dicts(unittest.TestCase):
    def test_tensors_and_objects_come_as_they_were_sent(self):
        sent = {"hidden": array.array("f", range(30000)), "flags": bytearray(b"\1\0\1"), "none": array.array("d")}

        def body(world, rank):
            peer = 1 - rank
            if rank == 0:
                tutti.Dict.send(world, sent, peer, tag=5)
                with tutti.Dict.start_send(world, sent, peer) as dict:
                    self.assertTrue(dict.wait())
                tutti.Dict.send_object(world, b"pickle it yourself", peer)
            else:
                with tutti.Dict.receive(world, peer, tag=5) as dict:
                    self.assertTrue(dict.wait())
                    self.assertTrue(dict.test())
                    tensors = dict.tensors()
                    self.assertEqual(list(tensors), list(sent))
                    self.assertEqual(tensors["hidden"].tobytes(), sent["hidden"].tobytes())
                    self.assertEqual((tensors["hidden"].dtype, tensors["hidden"].shape), (tutti.DType.FLOAT32, (30000,)))
                    self.assertEqual(tensors["none"].shape, (0,))
                with tutti.Dict.receive(world, peer) as dict:
                    self.assertTrue(dict.probe())
                    with self.assertRaises(tutti.Error):
                        dict.tensors()["hidden"].memory()
                    own = [array.array("f", bytes(4 * 30000)), bytearray(3), array.array("d")]
                    self.assertTrue(dict.wait(into=own))
                    self.assertEqual(own[0], sent["hidden"])
                    self.assertEqual(own[1], sent["flags"])
                with tutti.Dict.receive(world, peer) as dict:
                    dict.wait()
                    self.assertEqual(dict.object(), b"pickle it yourself")
            with tutti.Dict.broadcast(world, sent if rank == 1 else None, root=1) as dict:
                dict.wait()
                if rank == 0:
                    self.assertEqual(dict.tensors()["flags"].tobytes(), sent["flags"])
            with tutti.Dict.broadcast_object(world, b"all" if rank == 0 else None) as dict:
                dict.wait()
                if rank == 1:
                    self.assertEqual(dict.object(), b"all")
            world.barrier()

        on_threads(2, body)

    def test_replicas_send_slices_and_gather_them(self):
        hidden = array.array("q", range(9001))

        def body(world, rank):
            with tutti.Layout(4, tensor=2, pipeline=2) as layout:
                groups = layout.create(world, [tutti.Kind.TP, tutti.Kind.PP])
            tp, pp = groups[tutti.Kind.TP], groups[tutti.Kind.PP]
            mine = array.array("i", [tp.rank] * 40000)
            if pp.rank == 0:
                tutti.Dict.send(pp, {"hidden": hidden, "mine": mine}, 1, replicas=tp, whole=["mine"])
            else:
                with tutti.Dict.receive(pp, 0, replicas=tp) as dict:
                    dict.wait()
                    tensors = dict.tensors()
                    self.assertEqual(tensors["hidden"].tobytes(), hidden.tobytes())
                    self.assertEqual(tensors["mine"].tobytes(), mine.tobytes())
            world.barrier()
            for group in groups.values():
                group.destroy()

        on_threads(4, body)


class Queues(unittest.TestCase):
    def test_every_reader_gets_every_message(self):
        messages = [b"", b"go", bytes(range(256)) * 1000]

        def body(world, rank):
            with tutti.Queue(world, writer=2) as queue:
                for message in messages:
                    if rank == 2:
                        queue.write(message)
                    else:
                        self.assertEqual(queue.next(), len(message))
                        self.assertEqual(queue.read(), message)
                if rank == 0:
                    with self.assertRaises(tutti.Error) as raised:
                        queue.read(timeout_ms=10)
                    self.assertEqual(raised.exception.status, tutti.Status.TIMEOUT)
                world.sync()

        on_threads(3, body)


class TransferPlans(unittest.TestCase):
    def items(self):
        training = [2, 2], [0, 1, 2, 3]
        inference = [3], [3, 4, 5]
        return [
            tutti.TransferItem(
                "gradient", [10, 6], tutti.TensorLayout("float32", *training, [tutti.partial(), tutti.shard(0)]),
                tutti.TensorLayout("bfloat16", *inference, [tutti.uneven(1, [1, 5, 0])])),
            tutti.TransferItem(
                "bias", [7], tutti.TensorLayout("float32", *training, [tutti.replicate(), tutti.replicate()]),
                tutti.TensorLayout("float32", *inference, [tutti.balanced(0)]), wire="float16"),
        ]

    def test_a_plan_says_what_moves(self):
        with tutti.TransferPlan(self.items(), 6) as plan:
            totals = plan.totals()
            self.assertEqual((totals["items"], totals["reduced"], totals["reduce_bound"]), (2, 240, 240))
            self.assertEqual(plan.region(0, tutti.TARGET, 4), ([0, 1], [10, 5], 50))
            self.assertEqual(plan.region(0, tutti.TARGET, 5)[2], 0)
            buckets = [plan.bucket(index) for index in range(totals["buckets"])]
            for rank in range(6):
                self.assertEqual([buckets[at]["bytes"] > 0 for at in plan.operations(rank)],
                                 [True] * plan.load(rank)["operations"])
            chunks = [plan.chunk(index, 4) for index in range(totals["chunks"])]
            received = sum(chunk["bytes"] for chunk in chunks if chunk["is_target"])
            self.assertEqual(received, plan.load(4)["received"])
            self.assertTrue(all(len(chunk["extent"]) in (1, 2) for chunk in chunks))
            self.assertIn("rank 4: ", plan.report(rank=4))
            self.assertTrue(plan.report("svg").startswith("<svg "))
            self.assertEqual(json.loads(plan.report("json"))["hash"], plan.hash.hex())
            self.assertEqual(tutti.TransferPlan(self.items(), 6).hash, plan.hash)

    def test_a_transfer_moves_it(self):
        def body(world, rank):
            with tutti.TransferPlan(self.items(), 6) as plan, tutti.Transfer(plan, world) as transfer:
                places = {}
                for item, side, dtype in ((0, 0, "f"), (0, 1, "h"), (1, 0, "f"), (1, 1, "f")):
                    count = plan.region(item, side, rank)[2]
                    places[item, side] = array.array(dtype, [rank + 1 if side == 0 else 0] * count) if count else None
                if rank == 3:
                    with self.assertRaises(ValueError):
                        transfer.bind(0, bytearray(3))
                for item in (0, 1):
                    transfer.bind(item, places[item, 0], places[item, 1])
                transfer.start()
                self.assertTrue(transfer.wait(TIMEOUT_MS))
                self.assertTrue(transfer.poll())
                progress = transfer.progress()
                self.assertEqual((progress["buckets_done"], progress["failed_rank"]), (progress["buckets"], -1))
                if places[0, 1]:  # rows 0 to 4 of ranks 0 and 2, the others of ranks 1 and 3; the upper half of a float
                    width = len(places[0, 1]) // 10
                    self.assertEqual(places[0, 1].tolist(), [0x4080] * 5 * width + [0x40C0] * 5 * width)
                    self.assertEqual(transfer.written(0), (len(places[0, 1]) * 2,) * 2)
        on_threads(6, body)

    def test_what_does_not_add_up_is_refused(self):
        with self.assertRaises(tutti.Error) as caught:
            tutti.TransferPlan(self.items(), 5)
        self.assertEqual(caught.exception.status, tutti.Status.INVALID_ARGUMENT)
        self.assertIn("rank 5", str(caught.exception))


class Loading(unittest.TestCase):
    def load(self, **environment):
        command = [sys.executable, "-c", "import tutti; print(tutti.library_path)"]
        return subprocess.run(command, env=dict(os.environ, **environment), capture_output=True, text=True)

    def test_a_missing_library_is_named(self):
        result = self.load(TUTTI_LIBRARY="/no/such/libtutti.so")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("/no/such/libtutti.so", result.stderr)

    def test_the_installed_tree_needs_no_variable(self):
        environment = {name: value for name, value in os.environ.items() if name != "TUTTI_LIBRARY"}
        command = [sys.executable, "-c", "import tutti; print(tutti.library_path)"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("libtutti.so", result.stdout)

    def test_a_world_may_be_left_behind_at_exit(self):
        program = "import tutti; ranks = tutti.World.local(3); request = ranks[0].start(tutti.Collective.BARRIER)"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WATCHDOG_SECONDS)
        self.assertEqual((result.returncode, result.stderr), (0, ""))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True)
    unittest.main(verbosity=2)
