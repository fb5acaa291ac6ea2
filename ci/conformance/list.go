// SPDX-License-Identifier: Apache-2.0

package conformance

import "time"

// Tests returns the kit. The list says which requirements a function proves
// and what it needs; a function that is not in it does not exist.
func Tests() []*Test {
	const (
		peer = NeedPeer
		bulk = NeedPeer | NeedBulk
	)
	ids := func(s ...string) []string { return s }
	return []*Test{
		{Name: "TestRIG02_Config", IDs: ids("RIG02"), Func: TestRIG02_Config},
		{Name: "TestRIG02_Registers", IDs: ids("RIG02"), Func: TestRIG02_Registers},
		{Name: "TestRIG02_Scratch", IDs: ids("RIG02"), Func: TestRIG02_Scratch},
		{Name: "TestRIG02_Raise", IDs: ids("RIG02"), Func: TestRIG02_Raise},
		{Name: "TestRIG02_DMA", IDs: ids("RIG02"), Func: TestRIG02_DMA},
		{Name: "TestRIG02_Reset", IDs: ids("RIG02", "IF10"), Func: TestRIG02_Reset},
		{Name: "TestRIG02_Events", IDs: ids("RIG02"), Func: TestRIG02_Events},
		{Name: "TestRIG02_PolicyClock", IDs: ids("RIG02"), Func: TestRIG02_PolicyClock},

		{Name: "TestIF01_Create", IDs: ids("IF01"), Func: TestIF01_Create},
		{Name: "TestIF01_Refused", IDs: ids("IF01"), Func: TestIF01_Refused},
		{Name: "TestIF01_Sizes", IDs: ids("IF01"), Func: TestIF01_Sizes},
		{Name: "TestIF01_SeveralQueues", IDs: ids("IF01", "IF11"), Func: TestIF01_SeveralQueues},
		{Name: "TestIF01_PauseDrain", IDs: ids("IF01", "IF10"), Func: TestIF01_PauseDrain},
		{Name: "TestIF01_ConfigTakenAtCreate", IDs: ids("IF01"), Func: TestIF01_ConfigTakenAtCreate},
		{Name: "TestIF02_HandBack", IDs: ids("IF02"), Func: TestIF02_HandBack},
		{Name: "TestIF02_Gap", IDs: ids("IF02"), Func: TestIF02_Gap},
		{Name: "TestIF02_DoorbellOwnsNothing", IDs: ids("IF02"), Func: TestIF02_DoorbellOwnsNothing},
		{Name: "TestIF02_Wrap", IDs: ids("IF02"), Func: TestIF02_Wrap},
		{Name: "TestIF03_Runs", IDs: ids("IF03"), Func: TestIF03_Runs},
		{Name: "TestIF04_Types", IDs: ids("IF04", "IF05"), Func: TestIF04_Types},
		{Name: "TestIF04_BadType", IDs: ids("IF04", "IF05"), Func: TestIF04_BadType},
		{Name: "TestIF06_Reserved", IDs: ids("IF06"), Func: TestIF06_Reserved},
		{Name: "TestIF06_BadLength", IDs: ids("IF06"), Func: TestIF06_BadLength},
		{Name: "TestIF07_ControlBuffer", IDs: ids("IF07"), Func: TestIF07_ControlBuffer},
		{Name: "TestIF08_Tuples", IDs: ids("IF08"), Func: TestIF08_Tuples},
		{Name: "TestIF08_Malformed", IDs: ids("IF08"), Func: TestIF08_Malformed},
		{Name: "TestIF08_Many", IDs: ids("IF08"), Func: TestIF08_Many},
		{Name: "TestIF08_Noise", IDs: ids("IF08", "IF10"), Func: TestIF08_Noise},
		{Name: "TestIF09_ConnectionIDs", IDs: ids("IF09"), Needs: peer, Func: TestIF09_ConnectionIDs},
		{Name: "TestIF09_WrongQueue", IDs: ids("IF09"), Needs: peer, Func: TestIF09_WrongQueue},
		{Name: "TestIF10_Tags", IDs: ids("IF10"), Func: TestIF10_Tags},
		{Name: "TestIF10_Order", IDs: ids("IF10"), Needs: peer, Func: TestIF10_Order},
		{Name: "TestIF11_Polling", IDs: ids("IF11"), Func: TestIF11_Polling},
		{Name: "TestIF11_Interrupt", IDs: ids("IF11"), Func: TestIF11_Interrupt},
		{Name: "TestIF11_InputFreed", IDs: ids("IF11"), Func: TestIF11_InputFreed},
		{Name: "TestIF11_Switch", IDs: ids("IF11"), Func: TestIF11_Switch},
		{Name: "TestIF11_DoorbellOnlyIfAsked", IDs: ids("IF11", "IF03"), Func: TestIF11_DoorbellOnlyIfAsked},
		{Name: "TestIF12_NearlyFull", IDs: ids("IF12"), Func: TestIF12_NearlyFull},
		{Name: "TestIF12_Full", IDs: ids("IF12"), Func: TestIF12_Full},
		{Name: "TestIF12_HostStops", IDs: ids("IF12"), Limit: time.Minute, Func: TestIF12_HostStops},
		{Name: "TestIF12_Destroy", IDs: ids("IF12"), Func: TestIF12_Destroy},
		{Name: "TestIF13_Adapter", IDs: ids("IF13"), Func: TestIF13_Adapter},
		{Name: "TestIF14_Defaults", IDs: ids("IF14"), Func: TestIF14_Defaults},
		{Name: "TestIF16_Protocol", IDs: ids("IF16"), Func: TestIF16_Protocol},
		{Name: "TestIF17_NVM", IDs: ids("IF17"), Func: TestIF17_NVM},

		{Name: "TestCE01_Connect", IDs: ids("CE01", "IF14"), Needs: peer, Func: TestCE01_Connect},
		{Name: "TestCE01_LocalPort", IDs: ids("CE01"), Needs: peer, Func: TestCE01_LocalPort},
		{Name: "TestCE01_Refused", IDs: ids("CE01"), Needs: peer, Func: TestCE01_Refused},
		{Name: "TestCE01_Unreachable", IDs: ids("CE01"), Needs: peer, Func: TestCE01_Unreachable},
		{Name: "TestCE01_TimeLimit", IDs: ids("CE01"), Needs: peer, Func: TestCE01_TimeLimit},
		{Name: "TestCE01_Attributes", IDs: ids("CE01", "IF14"), Needs: peer, Func: TestCE01_Attributes},
		{Name: "TestCE01_Malformed", IDs: ids("CE01", "IF07"), Func: TestCE01_Malformed},
		{Name: "TestCE02_Listen", IDs: ids("CE02"), Needs: peer, Func: TestCE02_Listen},
		{Name: "TestCE02_InUse", IDs: ids("CE02"), Func: TestCE02_InUse},
		{Name: "TestCE02_Several", IDs: ids("CE02"), Func: TestCE02_Several},
		{Name: "TestCE02_TimeLimit", IDs: ids("CE02"), Func: TestCE02_TimeLimit},
		{Name: "TestCE03_Limits", IDs: ids("CE03"), Needs: peer, Func: TestCE03_Limits},
		{Name: "TestCE04_Several", IDs: ids("CE04"), Needs: peer, Func: TestCE04_Several},
		{Name: "TestCE10_Connect", IDs: ids("CE10"), Needs: peer, Func: TestCE10_Connect},
		{Name: "TestCE10_Receive", IDs: ids("CE10"), Needs: peer, Func: TestCE10_Receive},
		{Name: "TestCE10_Send", IDs: ids("CE10"), Needs: bulk, Func: TestCE10_Send},
		{Name: "TestCE11_Graceful", IDs: ids("CE11"), Needs: peer, Func: TestCE11_Graceful},
		{Name: "TestCE11_Abort", IDs: ids("CE11"), Needs: peer, Func: TestCE11_Abort},
		{Name: "TestCE11_HalfClose", IDs: ids("CE11"), Needs: peer, Func: TestCE11_HalfClose},
		{Name: "TestCE11_RemoteFIN", IDs: ids("CE11"), Needs: peer, Func: TestCE11_RemoteFIN},
		{Name: "TestCE11_RemoteReset", IDs: ids("CE11"), Needs: peer, Func: TestCE11_RemoteReset},
		{Name: "TestCE11_BadMode", IDs: ids("CE11"), Needs: peer, Func: TestCE11_BadMode},

		{Name: "TestMM01_Buffered", IDs: ids("MM01"), Needs: peer, Func: TestMM01_Buffered},
		{Name: "TestMM01_BadMemory", IDs: ids("MM01"), Needs: peer, Func: TestMM01_BadMemory},
		{Name: "TestMM05_PartialReceive", IDs: ids("MM05", "IF06"), Needs: peer, Func: TestMM05_PartialReceive},
		{Name: "TestMM05_PartialSend", IDs: ids("MM05"), Needs: peer, Func: TestMM05_PartialSend},
		{Name: "TestMM05_Once", IDs: ids("MM05"), Needs: peer, Func: TestMM05_Once},
		{Name: "TestMM14_CompletionPoint", IDs: ids("MM14"), Needs: peer, Func: TestMM14_CompletionPoint},
		{Name: "TestMM14_Unacknowledged", IDs: ids("MM14"), Needs: bulk, Func: TestMM14_Unacknowledged},
		{Name: "TestRX07_Pool", IDs: ids("RX07"), Needs: peer, Func: TestRX07_Pool},
		{Name: "TestRX07_Empty", IDs: ids("RX07"), Needs: bulk, Func: TestRX07_Empty},
	}
}
