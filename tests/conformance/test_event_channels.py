"""port.EventChannel."""

from __future__ import annotations

import pytest
import trio
from conformance.peer import STRANGER
from conformance.world import Listener, World

from displbe.xen.port import HypervisorError


async def test_a_bound_port_fires_at_first_without_being_notified(world: World) -> None:
    listener = Listener()
    channel = world.hypervisor.bind(world.peer.domid, world.peer.offer().number, listener)
    assert world.hypervisor.ledger.ports == 1
    await listener.called(1)
    channel.close()
    assert world.hypervisor.ledger.ports == 0


async def test_both_ends_notify(world: World) -> None:
    listener, port = Listener(), world.peer.offer()
    channel = world.hypervisor.bind(world.peer.domid, port.number, listener)
    await listener.called(1)
    for times in range(2, 6):
        channel.rearm()
        port.notify()
        await listener.called(times)
        channel.notify()
        with trio.fail_after(5):
            await port.notified()
    channel.close()
    port.close()


async def test_no_call_before_rearm(world: World) -> None:
    listener, port = Listener(), world.peer.offer()
    channel = world.hypervisor.bind(world.peer.domid, port.number, listener)
    await listener.called(1)
    for _ in range(10):
        port.notify()
    await listener.quiet(1)
    # Notifications that arrived meanwhile are not lost; they make one call.
    channel.rearm()
    await listener.called(2)
    await listener.quiet(2)
    channel.close()


async def test_rearm_without_a_notification_calls_nothing(world: World) -> None:
    listener, port = Listener(), world.peer.offer()
    channel = world.hypervisor.bind(world.peer.domid, port.number, listener)
    await listener.called(1)
    channel.rearm()
    channel.rearm()
    await listener.quiet(1)
    port.notify()
    await listener.called(2)
    channel.close()


async def test_who_has_more_to_do_is_called_again_and_others_get_their_turn(world: World) -> None:
    greedy, modest = Listener(), Listener()
    greedy.more = lambda: greedy.calls < 2000
    ports = world.peer.offer(), world.peer.offer()
    one = world.hypervisor.bind(world.peer.domid, ports[0].number, greedy)
    await greedy.called(3)
    other = world.hypervisor.bind(world.peer.domid, ports[1].number, modest)
    await modest.called(1)
    assert greedy.calls < 2000, "the other port had to wait for the end"
    await greedy.called(2000)
    await greedy.quiet(2000)
    assert modest.calls == 1
    one.close()
    other.close()


async def test_a_closed_port_calls_nothing(world: World) -> None:
    listener, port = Listener(), world.peer.offer()
    channel = world.hypervisor.bind(world.peer.domid, port.number, listener)
    await listener.called(1)
    channel.rearm()
    port.notify()
    channel.close()
    port.notify()
    await listener.quiet(1)
    channel.close()
    assert world.hypervisor.ledger.ports == 0


async def test_a_port_closed_by_another_ones_callback(world: World) -> None:
    one, other = Listener(), Listener()
    ports = world.peer.offer(), world.peer.offer()
    first = world.hypervisor.bind(world.peer.domid, ports[0].number, one)
    second = world.hypervisor.bind(world.peer.domid, ports[1].number, other)
    await one.called(1)
    await other.called(1)
    one.then = second.close
    other.then = first.close
    for channel, port in zip((first, second), ports, strict=True):
        channel.rearm()
        port.notify()
    await trio.sleep(0.05)
    assert one.calls + other.calls == 3
    assert world.hypervisor.ledger.ports == 1
    first.close()
    second.close()


async def test_a_busy_port_may_be_closed(world: World) -> None:
    listener = Listener()
    listener.more = lambda: True
    channel = world.hypervisor.bind(world.peer.domid, world.peer.offer().number, listener)
    await listener.called(10)
    channel.close()
    calls = listener.calls
    await listener.quiet(calls)


async def test_a_port_that_nobody_offers(world: World) -> None:
    for domid, number in ((world.peer.domid, 900), (STRANGER, 1), (world.peer.domid, 0xFFFFFFFF)):
        with pytest.raises(HypervisorError, match=f"event channel {number} of domain {domid}"):
            world.hypervisor.bind(domid, number, Listener())
    assert world.hypervisor.ledger.ports == 0


async def test_a_port_that_is_offered_to_another_domain(world: World) -> None:
    port = world.peer.offer(to=STRANGER)
    with pytest.raises(HypervisorError):
        world.hypervisor.bind(world.peer.domid, port.number, Listener())


async def test_a_port_is_bound_once(world: World) -> None:
    port = world.peer.offer()
    channel = world.hypervisor.bind(world.peer.domid, port.number, Listener())
    with pytest.raises(HypervisorError):
        world.hypervisor.bind(world.peer.domid, port.number, Listener())
    assert world.hypervisor.ledger.ports == 1
    channel.close()


async def test_a_peer_that_has_gone_is_notified_in_vain(world: World) -> None:
    listener, port = Listener(), world.peer.offer()
    channel = world.hypervisor.bind(world.peer.domid, port.number, listener)
    await listener.called(1)
    port.close()
    channel.notify()
    channel.rearm()
    channel.close()


async def test_many_ports(world: World) -> None:
    listeners = [Listener() for _ in range(64)]
    ports = [world.peer.offer() for _ in listeners]
    channels = [
        world.hypervisor.bind(world.peer.domid, port.number, listener)
        for port, listener in zip(ports, listeners, strict=True)
    ]
    assert world.hypervisor.ledger.ports == 64
    for listener, channel in zip(listeners, channels, strict=True):
        await listener.called(1)
        channel.rearm()
    for port in ports[::2]:
        port.notify()
    for listener in listeners[::2]:
        await listener.called(2)
    assert {listener.calls for listener in listeners[1::2]} == {1}
    for channel in channels:
        channel.close()
